"""A peer that has gone without a word is cut off; one that is slow, or waits for its answer, is not."""

from __future__ import annotations

import asyncio
import logging
import re
import socket
from asyncio.sslproto import SSLProtocol
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from fastapi import Request, Response

from trellis.flower import upstream
from trellis.flower.front import OBJECT_BYTES, FleetFront
from trellis.http import connections
from trellis.http import server as http_server
from trellis.http.server import HttpServer, create_app, read_body
from trellis.keys.authority import create_authority, issue
from trellis.keys.principals import OPERATOR, SERVER
from trellis.tls import TlsFiles, client_context

SILENCE_S = 1.0
PUSH = b"POST /v1/fleet/push-object HTTP/1.1\r\nhost: f\r\n"
HALVES = {
    "no request": b"",
    "half a head": PUSH,
    "half a body": PUSH + b"content-length: 9\r\n\r\n1234",
    "half a chunk": PUSH + b"transfer-encoding: chunked\r\n\r\n9\r\n1234",
}


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Call a second of silence an end."""
    monkeypatch.setattr(connections, "SILENCE_S", SILENCE_S)
    monkeypatch.setattr(connections, "UNTAKEN_S", SILENCE_S)
    monkeypatch.setattr(upstream, "SILENCE_S", SILENCE_S)


class SuperLink:
    """Stands for Flower's: waits for a body for as long as it takes, then answers, in its time, and a lot."""

    def __init__(self) -> None:
        self.busy_s, self.answer_bytes = 0.0, 2
        self.bodies: list[bytes] = []
        self.holds, self.broke_off, self.answered = 0, 0, asyncio.Event()

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.holds += 1
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            counted = re.search(rb"content-length: (\d+)", head)
            body = reader.readexactly(int(counted[1])) if counted else reader.readuntil(b"0\r\n\r\n")
            self.bodies.append(await body)
            await asyncio.sleep(self.busy_s)
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % self.answer_bytes)
            writer.write(b"o" * self.answer_bytes)
            self.answered.set()
            await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            self.broke_off += 1
        finally:
            self.holds -= 1
            writer.close()


class Hurried(SSLProtocol):
    """Drops what is unsent soon after a connection was closed; asyncio does so after 30 s."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options | {"ssl_shutdown_timeout": SILENCE_S / 2})


@asynccontextmanager
async def front_before(superlink: SuperLink, tls: TlsFiles | None = None) -> AsyncIterator[int]:
    async with await asyncio.start_server(superlink, "127.0.0.1", 0) as behind:
        front = FleetFront(f"127.0.0.1:{behind.sockets[0].getsockname()[1]}")
        async with HttpServer(front, host="127.0.0.1", port=0, tls=tls) as server:
            yield server.port
        await front.aclose()


@pytest.fixture
def tls(tmp_path: Path) -> tuple[TlsFiles, TlsFiles]:
    """Return the server's files, and a client's."""
    create_authority(tmp_path)
    folders = [issue(tmp_path, SERVER, ["127.0.0.1"]), tmp_path / OPERATOR.folder]
    server, client = (
        TlsFiles(folder / "ca.crt", folder / "tls.crt", folder / "tls.key") for folder in folders
    )
    return server, client


@pytest.mark.parametrize("kind", ["plain", "tls"])
async def test_who_owes_the_rest_of_a_request_is_cut_off(
    tls: tuple[TlsFiles, TlsFiles], caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    superlink = SuperLink()
    server, context = (tls[0], client_context(tls[1])) if kind == "tls" else (None, None)
    loop = asyncio.get_running_loop()
    async with front_before(superlink, server) as port:

        async def cut_after(half: bytes) -> float:
            reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
            began = loop.time()
            writer.write(half)
            try:
                async with asyncio.timeout(20):
                    assert await reader.read() == b""
            except ConnectionError:
                pass  # a reset
            finally:
                writer.close()
            return loop.time() - began

        took = dict(zip(HALVES, await asyncio.gather(*map(cut_after, HALVES.values())), strict=True))
        async with asyncio.timeout(20):
            while superlink.holds:  # noqa: ASYNC110 - a peer's state
                await asyncio.sleep(0.05)
    assert {half: s for half, s in took.items() if s < 0.9 * SILENCE_S} == {}
    assert (superlink.bodies, superlink.broke_off) == ([], 2)
    said = [record.message for record in caplog.records if record.name == connections.logger.name]
    bodies, heads = "the rest of /v1/fleet/push-object,", "the rest of a request,"
    assert [sum(half in line for line in said) for half in (bodies, heads)] == [2, 2]


async def test_who_is_slow_is_not() -> None:
    superlink = SuperLink()
    async with front_before(superlink) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for piece in (PUSH, b"content-length: 5\r\n\r\n", *[b"x"] * 5):
            writer.write(piece)
            # A sleep, since nothing is to happen: half of what would be too long, and 3.5 times that in all.
            await asyncio.sleep(SILENCE_S / 2)
        head = await asyncio.wait_for(reader.readline(), 20)
        writer.close()
    assert (head, superlink.bodies) == (b"HTTP/1.1 200 OK\r\n", [b"x" * 5])


@pytest.mark.parametrize("kind", ["plain", "tls"])
async def test_who_reads_slowly_gets_the_whole_answer(
    tls: tuple[TlsFiles, TlsFiles], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(asyncio.sslproto, "SSLProtocol", Hurried)
    monkeypatch.setattr(http_server, "KEEP_ALIVE_S", 1)
    monkeypatch.setattr(connections, "UNTAKEN_S", 60.0)
    server_files, context = (tls[0], client_context(tls[1])) if kind == "tls" else (None, None)
    app = create_app("under test")
    size = 16 * 1024**2  # more than the sockets between hold

    @app.get("/large")
    async def large() -> Response:
        return Response(bytes(size))

    async with HttpServer(app, host="127.0.0.1", port=0, tls=server_files) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port, ssl=context, limit=2**16)
        writer.write(b"GET /large HTTP/1.1\r\nhost: f\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        # A sleep, since nothing is to happen: longer than all that ends who idles, or is silent.
        await asyncio.sleep(4 * SILENCE_S)
        try:
            body = await asyncio.wait_for(reader.readexactly(size), 60)
        finally:
            writer.close()
    assert len(body) == size


async def test_who_waits_for_an_answer_is_not() -> None:
    superlink = SuperLink()
    superlink.busy_s = 3 * SILENCE_S
    async with front_before(superlink) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(PUSH + b"content-length: 1\r\n\r\nx")
        head = await asyncio.wait_for(reader.readline(), 20)
        writer.close()
    assert head == b"HTTP/1.1 200 OK\r\n"


async def test_an_answer_that_nobody_takes_ends_with_its_connection() -> None:
    superlink = SuperLink()
    superlink.answer_bytes = 64 * 1024**2  # more than the sockets between hold
    async with front_before(superlink) as port:
        with socket.socket() as asking:
            asking.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
            asking.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(asking, ("127.0.0.1", port))
            await loop.sock_sendall(asking, PUSH + b"content-length: 1\r\n\r\nx")
            await asyncio.wait_for(superlink.answered.wait(), 20)
            async with asyncio.timeout(20):
                while any(  # noqa: ASYNC110 - the kernel's count, and no event
                    one.laddr.port == port and one.status == psutil.CONN_ESTABLISHED
                    for one in psutil.Process().net_connections()
                ):
                    await asyncio.sleep(0.05)


async def test_a_superlink_that_takes_nothing_is_said_to_be_tried_again() -> None:
    async with AsyncExitStack() as stack:
        stuck = stack.enter_context(socket.create_server(("127.0.0.1", 0)))  # nobody ever accepts
        front = FleetFront(f"127.0.0.1:{stuck.getsockname()[1]}")
        stack.push_async_callback(front.aclose)
        server = await stack.enter_async_context(HttpServer(front, host="127.0.0.1", port=0, tls=None))
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        stack.callback(writer.close)
        writer.write(PUSH + b"content-length: %d\r\n\r\n" % OBJECT_BYTES + bytes(OBJECT_BYTES))
        head = await asyncio.wait_for(reader.readline(), 20)
    assert b" 503 " in head


async def test_a_request_that_breaks_off_is_no_fault_of_the_service(caplog: pytest.LogCaptureFixture) -> None:
    app = create_app("under test")
    read = asyncio.Event()

    @app.post("/echo")
    async def echo(request: Request) -> None:
        try:
            await read_body(request, limit_bytes=1000)
        finally:
            read.set()

    async with HttpServer(app, host="127.0.0.1", port=0, tls=None) as server:
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"POST /echo HTTP/1.1\r\nhost: f\r\ncontent-length: 9\r\n\r\n1234")
        await asyncio.wait_for(read.wait(), 20)
        writer.close()
    assert [record.message for record in caplog.records if record.levelno >= logging.ERROR] == []
