"""The headers of a device's requests to a Fleet API: who it is, signed, and which Flower it has.

Flower's own interceptors put the same there. Their package imports Flower's errors, and these FastAPI, and
its version check brings requests: 13 MB of memory that a device never uses. The contract test holds the two
against each other.
"""

from __future__ import annotations

from base64 import b64encode

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.common.constant import TIMESTAMP_HEADER
from flwr.supercore.constant import (
    FLEET_HTTP_PUBLIC_KEY_HEADER,
    FLEET_HTTP_SIGNATURE_HEADER,
    FLWR_COMPONENT_NAME_METADATA_KEY,
    FLWR_PACKAGE_NAME_METADATA_KEY,
    FLWR_PACKAGE_VERSION_METADATA_KEY,
)
from flwr.supercore.date import now
from flwr.supercore.primitives.asymmetric import public_key_to_bytes, sign_message
from flwr.supercore.protobuf.client import ProtobufCall, ProtobufRequestContext
from flwr.supercore.version import package_name, package_version

COMPONENT = "SuperNode"

FLEET_RUN_STATUS_NOT_ALLOWED = 2007
"""Of `flwr.supercore.error.ApiErrorCode`."""


class DeviceHeaders:
    """A Flower `ProtobufClientInterceptor`: a request says this device's Flower, key and time, signed."""

    def __init__(self, key: ec.EllipticCurvePrivateKey) -> None:
        self._key = key
        self._public_key = b64encode(public_key_to_bytes(key.public_key())).decode("ascii")

    def intercept(self, context: ProtobufRequestContext, call_next: ProtobufCall) -> httpx.Response:
        timestamp = now().isoformat()
        signature = sign_message(self._key, timestamp.encode("ascii"))
        context.request.headers.update(
            {
                FLWR_PACKAGE_NAME_METADATA_KEY: package_name,
                FLWR_PACKAGE_VERSION_METADATA_KEY: package_version,
                FLWR_COMPONENT_NAME_METADATA_KEY: COMPONENT,
                FLEET_HTTP_PUBLIC_KEY_HEADER: self._public_key,
                TIMESTAMP_HEADER: timestamp,
                FLEET_HTTP_SIGNATURE_HEADER: b64encode(signature).decode("ascii"),
            }
        )
        return call_next(context)
