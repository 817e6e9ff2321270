"""The model zoo, training backends, data sets and their checks, and models as files."""

import os

# ONNX Runtime's own wheels report every session to Microsoft from 1.29 on, and leave an identifier behind,
# unless they are told before they are imported; later releases have renamed the variable.
os.environ.update(ORT_DISABLE_TELEMETRY="1", ORT_TELEMETRY_DISABLED="1")
