"""The front passes the Fleet API and nothing else, in both directions as a stream."""

from __future__ import annotations

import asyncio
import socket
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
from starlette.types import Message, Receive, Scope, Send

from trellis.flower.front import CALL_BYTES, OBJECT_BYTES, FleetFront
from trellis.http.server import HttpServer

BIG = OBJECT_BYTES
ALL_ELSE = [
    ("GET", "/v1/fleet/pull-messages"),
    ("PUT", "/v1/fleet/pull-messages"),
    ("DELETE", "/v1/fleet/pull-messages"),
    ("HEAD", "/v1/fleet/pull-messages"),
    ("OPTIONS", "/v1/fleet/pull-messages"),
    ("POST", "/"),
    ("POST", "/v1/control/start-run"),
    ("POST", "/v1/runtime/pull-app-inputs"),
    ("POST", "/v1/fleet"),
    ("POST", "/v1/fleet/"),
    ("POST", "/v1/fleet/pull/"),
    ("POST", "/v1/fleet/a/b"),
    ("POST", "/v1/fleet/.."),
    ("POST", "/v1/fleet/../control/start-run"),
    ("POST", "/v1/fleet/%2e%2e/control/start-run"),
    ("POST", "/v1/fleet/..%2fcontrol%2fstart-run"),
    ("POST", "/v1/fleet/pull%2dmessages"),
    ("POST", "/v1/%66leet/pull-messages"),
    ("POST", "//v1/fleet/pull-messages"),
    ("POST", "/v1//fleet/pull-messages"),
    ("POST", "/v1/fleet//pull-messages"),
    ("POST", "/./v1/fleet/pull-messages"),
    ("POST", "/V1/fleet/pull-messages"),
    ("POST", "/v1/fleet/Pull-Messages"),
    ("POST", "/v1/fleet/pull_messages"),
    ("POST", "/v1/fleet/pull;x=1"),
    ("POST", "/v1/fleet/pull-messages%00"),
    ("POST", "/v1/fleet/pull-messages%0a"),
    ("POST", "/v1/fleet/pull-messages?x=1"),
    ("POST", "/v1/fleet/pull-messages?/../../control/start-run"),
    ("POST", "http://other/v1/control/start-run"),
    ("POST", "/v2/fleet/pull-messages"),
]


@dataclass
class Upstream:
    """Stands for the SuperLink: notes what arrives, and answers with as many bytes as `x-want` says."""

    paths: list[tuple[str, bytes]] = field(default_factory=list)
    received: int = 0
    headers: dict[str, str] = field(default_factory=dict)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.paths.append((scope["method"], scope["raw_path"]))
        self.headers = {k.decode(): v.decode() for k, v in scope["headers"]}
        more = True
        while more:
            event = await receive()
            self.received += len(event.get("body", b""))
            more = event.get("more_body", False)
        want = int(self.headers.get("x-want", 2))
        await send({"type": "http.response.start", "status": 202, "headers": [(b"x-from", b"superlink")]})
        for start in range(0, want, 65536):
            size = min(65536, want - start)
            await send({"type": "http.response.body", "body": b"o" * size, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


@dataclass
class Front:
    """A front on a real socket, and what stands behind it."""

    port: int
    upstream: Upstream

    async def ask(
        self, method: str, target: str, body: bytes = b"", headers: str = ""
    ) -> tuple[int, str, bytes]:
        """Send a request byte by byte as given: no client of HTTP tidies up its path."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        head = f"{method} {target} HTTP/1.1\r\nhost: front\r\nconnection: close\r\n"
        length = f"content-length: {len(body)}\r\n"
        writer.write((head + length + headers + "\r\n").encode("latin-1") + body)
        answer = await asyncio.wait_for(reader.read(), 30)
        writer.close()
        answered, _, content = answer.partition(b"\r\n\r\n")
        return int(answered.split()[1]), answered.decode().lower(), content


@pytest.fixture
async def front() -> AsyncIterator[Front]:
    upstream = Upstream()
    async with HttpServer(upstream, host="127.0.0.1", port=0, tls=None) as behind:
        app = FleetFront(f"127.0.0.1:{behind.port}")
        async with HttpServer(app, host="127.0.0.1", port=0, tls=None) as server:
            yield Front(server.port, upstream)


@pytest.mark.parametrize("name", ["create-node", "pull-messages", "push-object", "x", "a1-2"])
async def test_the_fleet_api_passes_with_status_headers_and_body(front: Front, name: str) -> None:
    status, head, content = await front.ask("POST", f"/v1/fleet/{name}", b"hello", "x-device: cam-7\r\n")
    assert status == 202
    assert "x-from: superlink" in head
    assert [head.count(f"\r\n{once}: ") for once in ("date", "server")] == [1, 1]
    assert b"oo" in content
    assert front.upstream.paths == [("POST", f"/v1/fleet/{name}".encode())]
    assert front.upstream.received == 5
    assert front.upstream.headers["x-device"] == "cam-7"
    assert front.upstream.headers["host"].startswith("127.0.0.1:")


async def test_all_else_is_not_found_and_never_reaches_the_superlink(front: Front) -> None:
    answers = {(method, target): (await front.ask(method, target))[0] for method, target in ALL_ELSE}
    assert {asked: status for asked, status in answers.items() if status != 404} == {}
    assert front.upstream.paths == []


async def test_large_bodies_are_streamed_both_ways(front: Front) -> None:
    chunk = b"i" * 65536
    tracemalloc.start()
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", front.port)
        lengths = f"content-length: {BIG}\r\nx-want: {BIG}\r\n\r\n"
        writer.write(f"POST /v1/fleet/push-object HTTP/1.1\r\nhost: f\r\n{lengths}".encode())
        for _ in range(BIG // len(chunk)):
            writer.write(chunk)
            await asyncio.wait_for(writer.drain(), 30)
        received = 0
        async with asyncio.timeout(60):
            while received < BIG:
                received += len(await reader.read(65536))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    writer.close()
    assert front.upstream.received == BIG
    # Buffers of the four ends together; a front that holds the two bodies would take 32 MiB.
    assert peak < BIG // 2


@pytest.mark.parametrize(
    ("path", "largest"),
    [("/v1/fleet/push-object", OBJECT_BYTES), ("/v1/fleet/pull-messages", CALL_BYTES)],
)
async def test_a_body_that_says_it_is_too_large_is_refused_unread(
    front: Front, path: str, largest: int
) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", front.port)
    writer.write(f"POST {path} HTTP/1.1\r\nhost: f\r\ncontent-length: {largest + 1}\r\n\r\n".encode())
    head = await asyncio.wait_for(reader.readline(), 30)
    writer.close()
    assert b" 413 " in head
    assert front.upstream.paths == []


async def test_a_body_that_grows_too_large_is_cut_off(front: Front) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", front.port)
    writer.write(b"POST /v1/fleet/pull-messages HTTP/1.1\r\nhost: f\r\ntransfer-encoding: chunked\r\n\r\n")
    chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
    for _ in range(CALL_BYTES // 0x10000 + 2):
        writer.write(chunk)
    head = await asyncio.wait_for(reader.readline(), 30)
    writer.close()
    assert b" 413 " in head
    assert front.upstream.received <= CALL_BYTES


async def test_a_superlink_that_is_away_is_said_to_be_tried_again() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        app = FleetFront(f"127.0.0.1:{unused.getsockname()[1]}")
        async with HttpServer(app, host="127.0.0.1", port=0, tls=None) as server:
            status, head, content = await Front(server.port, Upstream()).ask(
                "POST", "/v1/fleet/pull-messages"
            )
    assert status == 503
    assert "retry-after: 1" in head
    assert content == b"the SuperLink does not answer"


@asynccontextmanager
async def front_of(
    serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[Front]:
    """A front before a server that answers byte by byte as it is told."""
    async with await asyncio.start_server(serve, "127.0.0.1", 0) as behind:
        app = FleetFront(f"127.0.0.1:{behind.sockets[0].getsockname()[1]}")
        async with HttpServer(app, host="127.0.0.1", port=0, tls=None) as server:
            yield Front(server.port, Upstream())
        await app.aclose()


@pytest.mark.parametrize(("closes", "connections"), [(False, 1), (True, 3)])
async def test_a_connection_to_the_superlink_is_kept_until_that_closes_it(
    closes: bool, connections: int
) -> None:
    opened: list[int] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        opened.append(1)
        while (await reader.readline()).startswith(b"POST"):
            while await reader.readline() != b"\r\n":
                pass
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
            if closes:
                break
        writer.close()

    async with front_of(serve) as front:
        for _ in range(3):
            status, _, content = await front.ask("POST", "/v1/fleet/pull-messages")
            assert (status, content) == (200, b"ok")
    assert len(opened) == connections


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nfive!",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\na\r\nfive!",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nfive!\r\n",
    ],
    ids=["counted", "within a chunk", "before the last chunk"],
)
async def test_an_answer_that_breaks_off_does_not_pass_as_whole(answer: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        writer.close()

    async with front_of(serve) as front:
        status, head, content = await front.ask("POST", "/v1/fleet/pull-messages")
    assert status == 200
    ended = content.endswith(b"0\r\n\r\n") if "chunked" in head else len(content) == 10
    assert not ended, (head, content)


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200 OK\r\nhalf", b"SSH-2.0-OpenSSH\r\n\r\n"])
async def test_what_is_no_answer_is_said_to_be_tried_again(answer: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        writer.close()

    async with front_of(serve) as front:
        status, head, _ = await front.ask("POST", "/v1/fleet/pull-messages")
    assert status == 503
    assert "retry-after: 1" in head


async def test_a_line_break_in_a_header_makes_no_second_header() -> None:
    app = FleetFront("127.0.0.1:1")
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(event: Message) -> None:
        sent.append(event)

    scope = {
        "type": "http",
        "method": "POST",
        "query_string": b"",
        "raw_path": b"/v1/fleet/x",
        "headers": [(b"x-device", b"a\r\ntransfer-encoding: chunked")],
    }
    await app(scope, receive, send)
    assert sent[0]["status"] == 400
