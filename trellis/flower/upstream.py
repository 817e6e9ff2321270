"""Kept connections to one HTTP server, for requests that are passed on and not read.

A front passes on what a server has parsed and a client will parse: here nothing is decoded, and no header is
looked at but those that frame a body. That is most of what a general client spends on a small request.

    Upstream.post
    ├── MisframedBody   the body is not as long as its length says: the server never sees its end
    └── OSError         the server does not answer, or broke off
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass

from trellis.silence import SILENCE_S, end_when_untaken

Header = tuple[bytes, bytes]

_CONNECT_S = 5.0
_ANSWER_S = 60.0
_ROOM_S = 600.0
"""A server that reads nothing is ended by the kernel, and sooner; one that reads very slowly is not."""
_IDLE_S = 3.0
"""uvicorn closes what is idle for 5 s: a request on its way then is lost."""
_MOST_KEPT = 64
_HEAD_BYTES = 65536
_CHUNK_BYTES = 65536


class BrokenOff(ConnectionError):
    """The server ended the connection before its answer, or answered what is no HTTP/1.1."""


class MisframedBody(Exception):
    """A request's body ends elsewhere than its headers say: what follows it could pass as another request."""


@dataclass(frozen=True)
class Answer:
    """An answer whose body is still to come; `body` must be read to its end or closed."""

    status: int
    headers: list[Header]
    body: AsyncGenerator[bytes]


@dataclass(frozen=True)
class _Connection:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter


class Upstream:
    """The server at `address`, as `127.0.0.1:8000`; with a `context`, over TLS."""

    def __init__(self, address: str, *, context: ssl.SSLContext | None = None) -> None:
        host, _, port = address.rpartition(":")
        self._host, self._port = host.strip("[]"), int(port)
        self._context = context
        self._name = address.encode()
        self._kept: list[tuple[float, _Connection]] = []

    async def post(
        self, path: bytes, headers: Sequence[Header], body: AsyncIterator[bytes], length: int | None
    ) -> Answer:
        """Send a request and return the answer once its head is there.

        Args:
            path: The request's target, as it came.
            headers: Without those of one connection, and without `content-length`.
            body: The body in pieces; what it raises is raised here, and the connection is closed.
            length: The body's length, None if nobody knows it yet.

        Raises:
            MisframedBody: `body` is shorter or longer than `length`; no byte beyond it was sent.
        """
        connection = self._take() or await self._connect()
        try:
            await self._write(connection.writer, path, headers, body, length)
            async with asyncio.timeout(_ANSWER_S):
                status, answered = await _head(connection.reader)
        except BaseException as error:
            # A mere close waits until what is written has been read: a server would sit on half a body.
            connection.writer.transport.abort()
            if isinstance(error, asyncio.LimitOverrunError):
                raise BrokenOff(str(error)) from error
            raise
        framing = {name: value for name, value in answered if name in _FRAMING}
        passed = [(name, value) for name, value in answered if name not in _PER_CONNECTION]
        return Answer(status, passed, self._body(connection, framing))

    async def aclose(self) -> None:
        """Close the connections that are kept."""
        while self._kept:
            self._kept.pop()[1].writer.close()

    def _take(self) -> _Connection | None:
        while self._kept:
            since, connection = self._kept.pop()
            if time.monotonic() - since < _IDLE_S and not connection.reader.at_eof():
                return connection
            connection.writer.close()
        return None

    async def _connect(self) -> _Connection:
        async with asyncio.timeout(_CONNECT_S):
            opened = asyncio.open_connection(self._host, self._port, ssl=self._context, limit=_HEAD_BYTES)
            connection = _Connection(*await opened)
        # It reads itself, and is on this machine, or behind a link that opens its window by the packet.
        end_when_untaken(connection.writer.transport, SILENCE_S)
        return connection

    async def _write(
        self,
        writer: asyncio.StreamWriter,
        path: bytes,
        headers: Sequence[Header],
        body: AsyncIterator[bytes],
        length: int | None,
    ) -> None:
        framing = b"transfer-encoding: chunked" if length is None else b"content-length: %d" % length
        lines = [b"POST %b HTTP/1.1" % path, b"host: %b" % self._name, framing]
        lines += [b"%b: %b" % header for header in headers]
        writer.write(b"\r\n".join([*lines, b"", b""]))
        came = 0
        async for piece in body:
            came += len(piece)
            if length is not None and came > length:
                raise MisframedBody(
                    f"the body has {came} bytes or more, its content-length says {length} bytes"
                )
            if piece:
                writer.write(piece if length is not None else b"%x\r\n%b\r\n" % (len(piece), piece))
                async with asyncio.timeout(_ROOM_S):
                    await writer.drain()
        if length is None:
            writer.write(b"0\r\n\r\n")
        elif came < length:
            raise MisframedBody(f"the body has {came} bytes, its content-length says {length} bytes")

    async def _body(self, connection: _Connection, framing: dict[bytes, bytes]) -> AsyncGenerator[bytes]:
        whole = False
        try:
            if framing.get(b"transfer-encoding", b"").lower() == b"chunked":
                pieces = _chunks(connection.reader)
            else:
                pieces = _counted(connection.reader, int(framing.get(b"content-length", b"0")))
            async for piece in pieces:
                yield piece
            whole = True
        finally:
            if whole and framing.get(b"connection", b"").lower() != b"close" and len(self._kept) < _MOST_KEPT:
                self._kept.append((time.monotonic(), connection))
            else:
                connection.writer.close()


_FRAMING = frozenset({b"content-length", b"transfer-encoding", b"connection"})
_PER_CONNECTION = frozenset({b"connection", b"keep-alive", b"transfer-encoding", b"trailer", b"upgrade"})


async def _head(reader: asyncio.StreamReader) -> tuple[int, list[Header]]:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError as error:
        raise BrokenOff("it closed the connection without an answer") from error
    first, *lines = head[:-4].split(b"\r\n")
    try:
        version, status = first.split(b" ", 2)[:2]
        if version != b"HTTP/1.1":
            raise ValueError
        if status.startswith(b"1"):
            # Nothing was asked that one would answer; taken for the answer, it would leave that to the next.
            raise BrokenOff(f"it sent an interim answer: {first[:80]!r}")
        pairs = [line.split(b":", 1) for line in lines]
        return int(status), [(name.lower(), value.strip()) for name, value in pairs]
    except ValueError:
        raise BrokenOff(f"it answered {first[:80]!r}, which is no HTTP/1.1") from None


async def _counted(reader: asyncio.StreamReader, length: int) -> AsyncIterator[bytes]:
    while length > 0:
        async with asyncio.timeout(_ANSWER_S):
            piece = await reader.read(min(length, _CHUNK_BYTES))
        if not piece:
            raise BrokenOff(f"it closed the connection {length} bytes before the end of its answer")
        length -= len(piece)
        yield piece


async def _chunks(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """RFC 9112, section 7.1."""
    try:
        while True:
            async with asyncio.timeout(_ANSWER_S):
                size = int((await reader.readuntil(b"\r\n")).split(b";", 1)[0], 16)
            async for piece in _counted(reader, size):
                yield piece
            async with asyncio.timeout(_ANSWER_S):
                # After a chunk's bytes, or where trailers would stand after the last.
                if await reader.readuntil(b"\r\n") != b"\r\n":
                    raise BrokenOff("its answer has trailers, or more than its chunk's size")
            if size == 0:
                return
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError) as error:
        raise BrokenOff(f"its answer breaks off: {error}") from error
