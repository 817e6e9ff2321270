"""Who may read over HTTP: with TLS the peer's certificate says who asks, as the broker's access list does.

A device reads its own region's topics alone; the HTTP APIs show all regions, so they are not for devices.
"""

from __future__ import annotations

from fastapi import Request

from trellis.errors import InvalidInput, Refused
from trellis.faults import shown
from trellis.keys.principals import Principal, Role, named

_READERS = frozenset({Role.OPERATOR, Role.SERVER, Role.GATEWAY})


def principal_of(name: str) -> Principal | None:
    """Return whose certificate bears this name; None if it is nobody's of the fleet."""
    try:
        return named(name)
    except InvalidInput:
        return None


async def require_reader(request: Request) -> None:
    """Return if the peer may read what concerns all regions: everybody where there is no TLS, on loopback.

    Raises:
        Refused: It is a device, or no principal of ours (code `principal`).
    """
    # A KeyError, were there no such key: who cannot be told is not let in.
    principal = request.scope["state"]["principal"]
    if principal is not None and not _reads(principal_of(principal)):
        raise Refused(
            "principal",
            f"{request.method} {request.url.path} is for the operator, the server and gateways, not for "
            f"{shown(principal)}: ask with the operator's keys",
        )


def _reads(principal: Principal | None) -> bool:
    return principal is not None and principal.role in _READERS
