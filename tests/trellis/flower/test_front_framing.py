"""No request hides in another's body: under both of uvicorn's parsers one request in is one request out."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from trellis.flower.front import FleetFront
from trellis.flower.upstream import BrokenOff, MisframedBody
from trellis.flower.upstream import Upstream as Kept
from trellis.http.server import bind

PATH = b"/v1/fleet/pull-messages"
HIDDEN = b"POST /v1/control/start-run HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n"
CHUNKED = b"%x\r\n%b\r\n0\r\n\r\n" % (len(HIDDEN) + 3, b"abc" + HIDDEN)
TRAILED = b"%x\r\n%b\r\n0\r\ncontent-length: 3\r\n\r\n" % (len(HIDDEN) + 3, b"abc" + HIDDEN)

# What stands after the request line and host, and the body.
MISFRAMED = {
    "length and chunked": (b"content-length: 3\r\ntransfer-encoding: chunked\r\n", CHUNKED),
    "chunked and length": (b"transfer-encoding: chunked\r\ncontent-length: 3\r\n", CHUNKED),
    "two lengths": (b"content-length: 3\r\ncontent-length: %d\r\n" % (len(HIDDEN) + 3), b"abc" + HIDDEN),
    "a list of lengths": (b"content-length: 3, %d\r\n" % (len(HIDDEN) + 3), b"abc" + HIDDEN),
    "a signed length": (b"content-length: +3\r\n", b"abc" + HIDDEN),
    "a negative length": (b"content-length: -3\r\n", b"abc" + HIDDEN),
    "a length with underscores": (b"content-length: 0_3\r\n", b"abc" + HIDDEN),
    "a hexadecimal length": (b"content-length: 0x3\r\n", b"abc" + HIDDEN),
    "an empty length": (b"content-length: \r\n", HIDDEN),
    "a space before the colon": (b"content-length : 3\r\n", b"abc" + HIDDEN),
    "a space before the coding's colon": (
        b"content-length: 3\r\ntransfer-encoding : chunked\r\n",
        b"0\r\n\r\n" + HIDDEN,
    ),
    "another coding": (b"transfer-encoding: gzip\r\n", CHUNKED),
    "another coding before": (b"transfer-encoding: gzip, chunked\r\n", CHUNKED),
    "a coding that looks like it": (b"transfer-encoding: xchunked\r\n", CHUNKED),
    "a vertical tab before the coding": (b"transfer-encoding: \x0bchunked\r\n", CHUNKED),
    "the coding twice": (b"transfer-encoding: chunked\r\ntransfer-encoding: identity\r\n", CHUNKED),
    "a folded length": (b"content-length: 3\r\n 0\r\n", b"abc" + HIDDEN),
    "a folded coding beside a length": (b"content-length: 3\r\ntransfer-encoding:\r\n chunked\r\n", CHUNKED),
    "a bare line feed in a value": (b"x: a\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n", CHUNKED),
    "a bare carriage return in a value": (b"x: a\rtransfer-encoding: chunked\r\n", CHUNKED),
    "a NUL in a value": (b"x: a\0b\r\ncontent-length: 0\r\n", b""),
    "a chunk longer than it says": (
        b"transfer-encoding: chunked\r\n",
        b"3\r\nabc" + HIDDEN + b"\r\n0\r\n\r\n",
    ),
    "a chunk's size with a sign": (b"transfer-encoding: chunked\r\n", b"+3\r\nabc\r\n0\r\n\r\n" + HIDDEN),
}

# One good request and its body.
FRAMED = {
    "a length": (b"content-length: 3\r\n", b"abc", b"abc"),
    "chunks": (b"transfer-encoding: chunked\r\n", b"2\r\nab\r\n1\r\nc\r\n0\r\n\r\n", b"abc"),
    "chunks in capitals": (b"Transfer-Encoding: Chunked\r\n", b"3\r\nabc\r\n0\r\n\r\n", b"abc"),
    "a request in a length": (b"content-length: %d\r\n" % len(HIDDEN), HIDDEN, HIDDEN),
    "a request in a chunk": (b"transfer-encoding: chunked\r\n", CHUNKED, b"abc" + HIDDEN),
    "no body": (b"", b"", b""),
    "a client that asks first": (b"expect: 100-continue\r\ncontent-length: 3\r\n", b"abc", b"abc"),
}

# What the parsers do not agree on: refused, or one request.
EITHER = {
    "a length in the trailers": (b"transfer-encoding: chunked\r\n", TRAILED, b"abc" + HIDDEN),
    "another protocol asked for": (
        b"connection: upgrade\r\nupgrade: h2c\r\ncontent-length: 3\r\n",
        b"abc",
        b"abc",
    ),
}


@dataclass
class Behind:
    """Stands for the SuperLink: notes each request, and answers with its body."""

    requests: list[tuple[bytes, bytes]] = field(default_factory=list)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body, more = b"", True
        while more:
            event = await receive()
            if event["type"] == "http.disconnect":
                return
            body += event.get("body", b"")
            more = event.get("more_body", False)
        self.requests.append((scope["raw_path"], body))
        length = (b"content-length", b"%d" % len(body))
        await send({"type": "http.response.start", "status": 200, "headers": [length]})
        await send({"type": "http.response.body", "body": body})


@asynccontextmanager
async def served(app: ASGIApp, http: str) -> AsyncIterator[int]:
    """`app` under that one of uvicorn's parsers; yields the port."""
    listener = bind("127.0.0.1", 0)
    config = uvicorn.Config(app, http=http, log_config=None, access_log=False, lifespan="off", ws="none")
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
            await asyncio.sleep(0.005)
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        await asyncio.wait_for(task, 30)
        listener.close()


@dataclass
class Pair:
    port: int
    behind: Behind

    async def say(self, raw: bytes) -> bytes:
        """Send bytes as they are, with a good request behind them, and return all answers."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(raw)
        answer = b""
        try:
            async with asyncio.timeout(30):
                head = b"HTTP/1.1 100"
                while head.startswith(b"HTTP/1.1 100"):
                    head = await reader.readuntil(b"\r\n\r\n")
                    answer += head
                if length := re.search(rb"(?i)\r\ncontent-length: (\d+)\r\n", head):
                    answer += await reader.readexactly(int(length[1]))
                # A pause, so that what hides in it would have been answered by the SuperLink by now.
                async with asyncio.timeout(0.3):
                    while piece := await reader.read(65536):
                        answer += piece
        except (TimeoutError, asyncio.IncompleteReadError, ConnectionError):
            pass
        writer.close()
        return answer


@pytest.fixture(params=["h11", "httptools"])
async def pair(request: pytest.FixtureRequest) -> AsyncIterator[Pair]:
    behind = Behind()
    async with served(behind, request.param) as port:
        front = FleetFront(f"127.0.0.1:{port}")
        async with served(front, request.param) as front_port:
            yield Pair(front_port, behind)
        await front.aclose()


@pytest.mark.parametrize("case", MISFRAMED)
async def test_a_body_that_can_be_read_in_two_ways_is_refused(pair: Pair, case: str) -> None:
    headers, body = MISFRAMED[case]
    answer = await pair.say(b"POST %b HTTP/1.1\r\nhost: f\r\n%b\r\n%b" % (PATH, headers, body))
    # Another on the connection that is kept to the SuperLink: what hides would be found before it.
    await pair.say(b"POST %b HTTP/1.1\r\nhost: f\r\ncontent-length: 4\r\n\r\ngood" % PATH)
    assert pair.behind.requests == [(PATH, b"good")], answer
    assert answer[9:12] in {b"400", b"501"} or not answer, answer


@pytest.mark.parametrize("case", FRAMED)
async def test_a_body_arrives_whole_and_alone(pair: Pair, case: str) -> None:
    headers, raw, body = FRAMED[case]
    answer = await pair.say(b"POST %b HTTP/1.1\r\nhost: f\r\n%b\r\n%b" % (PATH, headers, raw))
    assert b"HTTP/1.1 200" in answer
    assert answer.endswith(b"\r\n\r\n" + body)
    for number in range(2):  # on the same connection to the SuperLink: each has its own answer
        said = b"good %d" % number
        good = b"POST %b HTTP/1.1\r\nhost: f\r\ncontent-length: 6\r\n\r\n%b" % (PATH, said)
        assert (await pair.say(good)).endswith(b"\r\n\r\n" + said)
    assert pair.behind.requests == [(PATH, body), (PATH, b"good 0"), (PATH, b"good 1")]


@pytest.mark.parametrize("case", EITHER)
async def test_what_one_parser_takes_and_another_does_not_is_one_request_or_none(
    pair: Pair, case: str
) -> None:
    headers, raw, body = EITHER[case]
    await pair.say(b"POST %b HTTP/1.1\r\nhost: f\r\n%b\r\n%b" % (PATH, headers, raw))
    await pair.say(b"POST %b HTTP/1.1\r\nhost: f\r\ncontent-length: 4\r\n\r\ngood" % PATH)
    good = (PATH, b"good")
    assert pair.behind.requests in ([good], [(PATH, body), good])


@pytest.mark.parametrize(
    "target",
    [
        b"http://127.0.0.1/v1/control/start-run",
        b"http://x/v1/fleet/pull-messages/../../control/start-run",
        b"http://x/v1/control/start-run?/v1/fleet/pull-messages",
        b"//x/v1/fleet/../control/start-run",
        b"/v1/fleet/pull-messages#/../control",
        b"*",
        b"x:80",
    ],
)
async def test_a_target_of_another_form_reaches_nothing_but_the_fleet_api(pair: Pair, target: bytes) -> None:
    await pair.say(b"POST %b HTTP/1.1\r\nhost: f\r\ncontent-length: 0\r\n\r\n" % target)
    assert {path for path, _ in pair.behind.requests} <= {PATH}


@pytest.mark.parametrize(
    ("headers", "pieces"),
    [
        ([(b"content-length", b"3")], [b"abc" + HIDDEN]),
        ([(b"content-length", b"3")], [b"abc", HIDDEN]),
        ([(b"content-length", b"3")], [b"ab"]),
        ([], [HIDDEN]),
        ([(b"content-length", b"3"), (b"transfer-encoding", b"chunked")], [b"abc", HIDDEN]),
        ([(b"content-length", b"3"), (b"content-length", b"3")], [b"abc", HIDDEN]),
        ([(b"content-length", "٣".encode())], [b"abc"]),
        ([(b"content-length", b"9" * 5000)], [b"abc"]),
        ([(b"content-length", b"3"), (b"x y", b"")], [b"abc"]),
        ([(b"content-length", b"3"), (b"x: y\r\nz", b"")], [b"abc"]),
        ([(b"content-length", b"3"), (b"", b"")], [b"abc"]),
    ],
)
async def test_whatever_a_server_hands_the_front_a_body_is_as_long_as_it_says(
    headers: list[tuple[bytes, bytes]], pieces: list[bytes]
) -> None:
    events: list[Message] = [
        {"type": "http.request", "body": piece, "more_body": number < len(pieces)}
        for number, piece in enumerate(pieces, 1)
    ]
    sent: list[Message] = []

    async def receive() -> Message:
        return events.pop(0)

    async def send(event: Message) -> None:
        sent.append(event)

    behind = Behind()
    async with served(behind, "h11") as port:
        front = FleetFront(f"127.0.0.1:{port}")
        scope = {"type": "http", "method": "POST", "query_string": b"", "raw_path": PATH}
        await front({**scope, "headers": headers}, receive, send)
        assert sent[0]["status"] == 400
        assert (b"connection", b"close") in sent[0]["headers"]
        assert front._upstream._kept == []
        await front.aclose()
    # What came before the fault was seen may be a whole request; what is beyond it is none.
    assert behind.requests in ([], [(PATH, b"abc")], [(PATH, b"")])


@pytest.mark.parametrize("pieces", [[b"ab"], [b"abcd"], [b"ab", b"cd"], [b"abc", b"d"]])
async def test_no_byte_beyond_the_length_is_written(pieces: list[bytes]) -> None:
    written = bytearray()
    ended = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while piece := await reader.read(65536):
            written.extend(piece)
        writer.close()
        ended.set()

    async def body() -> AsyncIterator[bytes]:
        for piece in pieces:
            yield piece

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as behind:
        upstream = Kept(f"127.0.0.1:{behind.sockets[0].getsockname()[1]}")
        with pytest.raises(MisframedBody, match="3 bytes"):
            await upstream.post(PATH, [], body(), 3)
        await upstream.aclose()
        await asyncio.wait_for(ended.wait(), 30)
    assert len(bytes(written).partition(b"\r\n\r\n")[2]) <= 3


async def test_an_interim_answer_does_not_leave_the_answer_to_the_next_request() -> None:
    connections: list[int] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(1)
        while (await reader.readline()).startswith(b"POST"):
            while await reader.readline() != b"\r\n":
                pass
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        writer.close()

    async def nothing() -> AsyncIterator[bytes]:
        yield b""

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as behind:
        upstream = Kept(f"127.0.0.1:{behind.sockets[0].getsockname()[1]}")
        for _ in range(2):
            with pytest.raises(BrokenOff, match="interim answer"):
                await upstream.post(PATH, [], nothing(), 0)
        await upstream.aclose()
    assert len(connections) == 2
