"""The front: what devices reach of a SuperLink. It passes `POST /v1/fleet/*` and answers 404 to all else.

A thin streaming proxy, so that the SuperLink stays Flower's own process on loopback and any reverse proxy
can take the front's place in production (`deploy/reverse-proxy/`). Bodies are streamed both ways; nothing
of a tensor is held here.
"""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncIterator

import httpx
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

logger = logging.getLogger(__name__)

# The raw path as it came, before any decoding: no `..`, no `%2e`, no second meaning behind a proxy.
_FLEET = re.compile(rb"/v1/fleet/[a-z0-9-]+")
# RFC 9110 section 7.6.1: what concerns one connection only is not passed on.
_HOP_BY_HOP = {
    "connection",
    "host",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
}
OBJECT_BYTES = 16 * 1024**2
"""Largest body of `push-object`: Flower cuts arrays into chunks of 5 MiB."""
CALL_BYTES = 4 * 1024**2
"""Largest body of any other call: lists of object IDs."""
_TIMEOUT = httpx.Timeout(60.0, connect=5.0)
_LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=64)


class FleetFront:
    """The ASGI app that stands before one SuperLink."""

    def __init__(self, superlink_address: str) -> None:
        self._client = httpx.AsyncClient(
            base_url=f"http://{superlink_address}", timeout=_TIMEOUT, limits=_LIMITS, trust_env=False
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        request = Request(scope, receive)
        path: bytes = scope.get("raw_path") or scope["path"].encode()
        fleet = request.method == "POST" and not scope["query_string"] and _FLEET.fullmatch(path)
        if not fleet:
            response: Response = PlainTextResponse("Not Found", status_code=404)
        else:
            response = await _pass_on(self._client, request, path.decode())
        await response(scope, receive, send)

    async def aclose(self) -> None:
        """Close the connections to the SuperLink."""
        await self._client.aclose()


class _TooLarge(Exception):
    """The body has grown beyond what its path allows."""


async def _pass_on(client: httpx.AsyncClient, request: Request, path: str) -> Response:
    headers = [(k, v) for k, v in request.headers.items() if k not in _HOP_BY_HOP]
    largest = OBJECT_BYTES if path.endswith("/push-object") else CALL_BYTES
    if int(request.headers.get("content-length", "0")) > largest:
        return _too_large(largest)
    upstream = client.build_request("POST", path, headers=headers, content=_limited(request, largest))
    try:
        response = await client.send(upstream, stream=True)
    except ClientDisconnect:
        return Response(status_code=499)  # nginx's word for it; nobody is there to read it
    except _TooLarge:
        return _too_large(largest)
    except httpx.TransportError as error:
        # The SuperLink is being started again; a device tries again after this.
        logger.warning(
            "front: the SuperLink does not answer path=%s: %s", path, error or type(error).__name__
        )
        return PlainTextResponse(
            "the SuperLink does not answer", status_code=503, headers={"retry-after": "1"}
        )
    passed = {k: v for k, v in response.headers.items() if k not in _HOP_BY_HOP}
    return StreamingResponse(_body(response), status_code=response.status_code, headers=passed)


def _too_large(largest: int) -> Response:
    return PlainTextResponse(f"at most {largest} bytes", status_code=413)


async def _limited(request: Request, largest: int) -> AsyncIterator[bytes]:
    # Flower reads a body whole before it asks who sends it: nobody may fill its memory.
    came = 0
    async for chunk in request.stream():
        came += len(chunk)
        if came > largest:
            raise _TooLarge
        yield chunk


async def _body(response: httpx.Response) -> AsyncIterator[bytes]:
    try:
        async for chunk in response.aiter_raw():
            yield chunk
    finally:
        await response.aclose()
