"""Reading exported models without their libraries: what a file holds is known before a runtime opens it."""

from models.exported.reading import LABEL_DTYPES, MAX_ARTEFACT_BYTES, Artefact, read_artefact, require_model

__all__ = ["LABEL_DTYPES", "MAX_ARTEFACT_BYTES", "Artefact", "read_artefact", "require_model"]
