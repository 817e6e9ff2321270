"""Who may read over HTTP: with TLS the peer's certificate says who asks, as the broker's access list does.

A device reads its own region's topics alone; the HTTP APIs show all regions, so they are not for devices.
"""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import Request
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from trellis.errors import InvalidInput, Refused
from trellis.faults import shown
from trellis.keys.principals import Principal, Role, named

_READERS = frozenset({Role.OPERATOR, Role.SERVER, Role.GATEWAY})


# Named, where uvicorn's own choice is whatever is installed: llhttp refuses what can be read in two ways.
class PeerProtocol(HttpToolsProtocol):
    """uvicorn's protocol; `scope["state"]` has the peer's `principal`, None without TLS, and `abort`."""

    app_state: dict[str, Any]

    def connection_made(  # type: ignore[override]  # as uvicorn's
        self, transport: asyncio.Transport
    ) -> None:
        """Take a connection whose handshake is over."""
        super().connection_made(transport)
        self.app_state = {
            **self.app_state,
            "principal": _peer(transport),
            "abort": transport.abort,
        }


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


def _peer(transport: asyncio.BaseTransport) -> str | None:
    """Return the name in the peer's certificate, empty if it has none or several; None without TLS."""
    if transport.get_extra_info("sslcontext") is None:
        return None
    subject = (transport.get_extra_info("peercert") or {}).get("subject", ())
    names = [value for part in subject for key, value in part if key == "commonName"]
    return str(names[0]) if len(names) == 1 else ""


def _reads(principal: Principal | None) -> bool:
    return principal is not None and principal.role in _READERS
