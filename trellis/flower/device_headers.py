"""The headers of a device's requests to a Fleet API: who it is, signed, and which Flower it has.

Flower's own interceptors put the same there. Their package imports Flower's errors, and these FastAPI, and
its version check brings requests: 13 MB of memory that a device never uses. The contract test holds the two
against each other.
"""

from __future__ import annotations

from base64 import b64encode
from datetime import datetime
from email.utils import parsedate_to_datetime

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

CLOCK_AHEAD_S = 5
CLOCK_BEHIND_S = 305
"""How far a device's clock may be from the SuperLink's; farther, and a request is no one's (HTTP 401)."""


def clock_ahead_s(response: httpx.Response) -> float | None:
    """Return how far the clock was ahead that signed the request, of the one of whoever answered it.

    Less what the way there took, and up to two seconds too much: a server's time is in whole ones, and may be
    of a second ago.
    """
    try:
        signed_at = datetime.fromisoformat(response.request.headers[TIMESTAMP_HEADER])
        return (signed_at - parsedate_to_datetime(response.headers["date"])).total_seconds()
    except (KeyError, ValueError, TypeError):
        return None


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
