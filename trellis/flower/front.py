"""The front: what devices reach of a SuperLink. It passes `POST /v1/fleet/*` and answers 404 to all else.

A thin streaming proxy, so that the SuperLink stays Flower's own process on loopback and any reverse proxy
can take the front's place in production (`deploy/reverse-proxy/`). Bodies are streamed both ways; nothing
of a tensor is held here.

A request whose body could be read in two ways would carry a second one past the front: it is refused,
whatever the HTTP parser before this made of it, and what goes on is framed by what is counted here.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import AsyncIterator

from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from trellis.flower.upstream import Answer, Header, MisframedBody, Upstream
from trellis.tls import TlsFiles, client_context

logger = logging.getLogger(__name__)

# The raw path as it came, before any decoding: no `..`, no `%2e`, no second meaning behind a proxy.
_FLEET = re.compile(rb"/v1/fleet/[a-z0-9-]+")
# RFC 9110 section 7.6.1: what concerns one connection only is not passed on. A body's length is said anew,
# and who asks whether it may send it (`expect`) has its answer from here.
_NOT_PASSED = frozenset(
    {
        b"connection",
        b"content-length",
        b"expect",
        b"host",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
_SAID_HERE = frozenset({b"date", b"server"})
"""What the server that the front stands on says of itself. Two dates are none (RFC 9110, section 5.3)."""
OBJECT_BYTES = 16 * 1024**2
"""Largest body of `push-object`: Flower cuts arrays into chunks of 5 MiB."""
CALL_BYTES = 4 * 1024**2
"""Largest body of any other call: lists of object IDs, and small messages (`trellis.flower.inline`)."""


class FleetFront:
    """The ASGI app that stands before one SuperLink.

    Args:
        address: `host:port` of the SuperLink, or of another front before it.
        tls: CA and client certificate, where it is another front beyond loopback.
    """

    def __init__(self, address: str, *, tls: TlsFiles | None = None) -> None:
        self._upstream = Upstream(address, context=None if tls is None else client_context(tls))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        path: bytes = scope.get("raw_path") or scope["path"].encode()
        if scope["method"] != "POST" or scope["query_string"] or not _FLEET.fullmatch(path):
            await _say(send, 404, "Not Found")
            return
        try:
            answer = await self._passed_on(scope["headers"], path, receive)
        except ClientDisconnect:
            return  # nobody is there to read an answer
        except _Refused as refused:
            await _say(send, refused.status, refused.text)
        except MisframedBody as error:
            # RFC 9112, section 6.3: where the next request begins nobody knows.
            logger.warning("front: a request was refused path=%s: %s", path.decode(), error)
            await _say(send, 400, str(error), (b"connection", b"close"))
        except OSError as error:
            # The SuperLink is being started again; a device tries again after this.
            logger.warning(
                "front: the SuperLink does not answer path=%s: %s",
                path.decode(),
                error or type(error).__name__,
            )
            await _say(send, 503, "the SuperLink does not answer", (b"retry-after", b"1"))
        else:
            await _pass_back(send, answer, path.decode())

    async def aclose(self) -> None:
        """Close the connections to the SuperLink."""
        await self._upstream.aclose()

    async def _passed_on(self, headers: list[Header], path: bytes, receive: Receive) -> Answer:
        length = _framed(headers)
        largest = OBJECT_BYTES if path.endswith(b"/push-object") else CALL_BYTES
        if length is not None and length > largest:
            raise _too_large(largest)
        passed = [(name, value) for name, value in headers if name not in _NOT_PASSED]
        return await self._upstream.post(path, passed, _limited(receive, largest), length)


# RFC 9110, sections 5.1 and 5.5. To the SuperLink a line break would be a second header, or a second request.
_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9a-z-]+")
_NOT_IN_A_VALUE = re.compile(rb"[\r\n\0]")
_LENGTH = re.compile(rb"[0-9]{1,15}")


def _framed(headers: list[Header]) -> int | None:
    """Return the length that a request says its body has, None if it comes in chunks.

    Raises:
        MisframedBody: Someone else could read its headers in another way (RFC 9112, section 6.3).
    """
    for name, value in headers:
        if not _NAME.fullmatch(name) or _NOT_IN_A_VALUE.search(value):
            raise MisframedBody("a header's name is no token, or its value holds a line break")
    lengths = [value for name, value in headers if name == b"content-length"]
    codings = [value for name, value in headers if name == b"transfer-encoding"]
    if lengths and codings:
        raise MisframedBody("content-length and transfer-encoding exclude each other")
    if codings:
        if len(codings) > 1 or codings[0].lower() != b"chunked":
            raise MisframedBody("transfer-encoding must be `chunked`, once")
        return None
    if len(lengths) > 1 or not all(_LENGTH.fullmatch(value) for value in lengths):
        raise MisframedBody("content-length must be one decimal number")
    # RFC 9112, section 6.3: a request that frames no body has none.
    return int(lengths[0]) if lengths else 0


class _Refused(Exception):
    """The request goes no further."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status, self.text = status, text


def _too_large(largest: int) -> _Refused:
    return _Refused(413, f"at most {largest} bytes")


async def _limited(receive: Receive, largest: int) -> AsyncIterator[bytes]:
    # Flower reads a body whole before it asks who sends it: nobody may fill its memory.
    came, more = 0, True
    while more:
        event = await receive()
        if event["type"] == "http.disconnect":
            raise ClientDisconnect
        body: bytes = event.get("body", b"")
        came += len(body)
        if came > largest:
            raise _too_large(largest)
        more = event.get("more_body", False)
        yield body


async def _pass_back(send: Send, answer: Answer, path: str) -> None:
    async with contextlib.aclosing(answer.body) as body:
        headers = [(name, value) for name, value in answer.headers if name not in _SAID_HERE]
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        try:
            async for piece in body:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        except OSError as error:
            # Left unfinished: uvicorn then closes the connection, and the device sees that it was cut.
            logger.warning("front: the SuperLink broke off path=%s: %s", path, error or type(error).__name__)
            return
        await send({"type": "http.response.body", "body": b""})


async def _say(send: Send, status: int, text: str, *more: Header) -> None:
    body = text.encode()
    headers = [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", b"%d" % len(body)),
        *more,
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
