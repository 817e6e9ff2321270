"""Server and client over real sockets."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import PlainTextResponse, Response, StreamingResponse
from held_clock import HeldClock

from trellis.errors import ConfigError, DiskFailed, InvalidInput, Refused, TrellisError, Unavailable
from trellis.http import connections
from trellis.http.client import ServiceClient
from trellis.http.server import HttpServer, create_app, read_body
from trellis.keys.authority import create_authority, issue
from trellis.keys.principals import SERVER, gateway
from trellis.loopback import is_loopback
from trellis.tls import TlsFiles

MODEL = bytes(range(256)) * 4096  # 1 MiB


@pytest.fixture
def app() -> FastAPI:
    app = create_app("under test")
    app.state.hanging = asyncio.Event()

    @app.get("/refused")
    async def refused() -> None:
        raise Refused("revision", "task 't' has revision 2, revision 1 came")

    @app.post("/tasks/{name}/cancel")
    async def unknown(name: str) -> None:
        raise Refused("unknown", f"there is no task {name}")

    @app.get("/bug")
    async def bug() -> None:
        raise RuntimeError("a bug")

    @app.get("/number")
    async def number(n: int) -> dict[str, int]:
        return {"n": n}

    @app.get("/list")
    async def a_list() -> list[int]:
        return [1]

    @app.get("/text")
    async def text() -> PlainTextResponse:
        return PlainTextResponse("hello")

    @app.post("/echo")
    async def echo(request: Request) -> dict[str, str]:
        return {"body": (await read_body(request, limit_bytes=1000)).decode()}

    @app.get("/empty")
    async def empty() -> Response:
        return Response(status_code=204)

    @app.get("/model")
    async def model() -> Response:
        return Response(MODEL)

    @app.get("/torn")
    async def torn() -> StreamingResponse:
        async def half() -> AsyncIterator[bytes]:
            yield MODEL[:1000]
            raise OSError("the disk is gone")

        return StreamingResponse(half(), headers={"content-length": str(len(MODEL))})

    @app.get("/hang")
    async def hang() -> None:
        app.state.hanging.set()
        await asyncio.sleep(3600)

    return app


@pytest.fixture
async def server(app: FastAPI) -> AsyncIterator[HttpServer]:
    async with HttpServer(app, host="127.0.0.1", port=0, tls=None) as server:
        yield server


@pytest.fixture
async def client(server: HttpServer) -> AsyncIterator[ServiceClient]:
    async with ServiceClient(server.url, tls=None) as client:
        yield client


async def test_a_server_ends_at_once(app: FastAPI) -> None:
    took_s = []
    for _ in range(5):
        async with HttpServer(app, host="127.0.0.1", port=0, tls=None) as server:
            async with httpx.AsyncClient(timeout=30) as client:
                assert (await client.get(f"{server.url}/number", params={"n": 1})).json() == {"n": 1}
            # uvicorn itself would look ten times a second whether it is to end.
            began = time.monotonic()
        took_s.append(time.monotonic() - began)
    assert min(took_s) < 0.5  # a busy machine's pauses are not the server's


async def test_answers_and_errors_arrive_as_what_they_are(client: ServiceClient) -> None:
    assert await client.get("/number", n=5) == {"n": 5}
    assert await client.post("/echo", b"hi") == {"body": "hi"}
    assert await client.get("/empty") == {}
    with pytest.raises(Refused, match="revision 1 came") as refused:
        await client.get("/refused")
    assert refused.value.code == "revision"
    with pytest.raises(InvalidInput, match=r'query\.n: .*integer.*, got "x"'):
        await client.get("/number", n="x")
    with pytest.raises(Refused, match="GET /nowhere: Not Found"):
        await client.get("/nowhere")
    with pytest.raises(TrellisError, match="answered HTTP 500 with something that is not Trellis's"):
        await client.get("/bug")


async def test_each_answer_has_the_date_of_its_own_request(
    server: HttpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = HeldClock.of(connections, monkeypatch, now=0.0)
    async with httpx.AsyncClient(base_url=server.url, timeout=30) as client:
        for clock.now, due in (
            (0.9, "Thu, 01 Jan 1970 00:00:00 GMT"),
            (1.0, "Thu, 01 Jan 1970 00:00:01 GMT"),
            (86_400.0, "Fri, 02 Jan 1970 00:00:00 GMT"),
        ):
            for path in ("/text", "/nowhere"):
                answer = await client.get(path)
                assert answer.headers.get_list("date") == [due]
                assert answer.headers.get_list("server") == ["uvicorn"]


async def test_a_refused_path_is_one_harmless_line_of_the_log(
    server: HttpServer, caplog: pytest.LogCaptureFixture
) -> None:
    name = "x%0a2026-11-22 00:00:00,000 INFO central_server: task=demo: canceled%1b[2J%c2%9b"
    async with httpx.AsyncClient(timeout=30) as client:
        assert (await client.post(f"{server.url}/tasks/{name}/cancel")).status_code == 404
    (line,) = (record.getMessage() for record in caplog.records if record.name == "trellis.http.server")
    assert line.isprintable()
    assert line.startswith(
        r"POST /tasks/x\n2026-11-22 00:00:00,000 INFO central_server: task=demo: canceled\x1b[2J"
    )
    assert line.endswith(
        r"refused: there is no task x 2026-11-22 00:00:00,000 INFO central_server: task=demo: "
        r"canceled\x1b[2J\x9b"
    )


@pytest.mark.parametrize("path", ["/list", "/text"])
async def test_an_answer_that_is_no_json_object_is_refused(client: ServiceClient, path: str) -> None:
    with pytest.raises(TrellisError, match=f"{path} answered with something that is no JSON object"):
        await client.get(path)


async def test_a_body_beyond_its_limit_is_refused(client: ServiceClient) -> None:
    assert await client.post("/echo", b"x" * 1000) == {"body": "x" * 1000}
    with pytest.raises(InvalidInput, match="request body: has more than 1000 bytes"):
        await client.post("/echo", b"x" * 1001)


async def test_a_download_is_whole(client: ServiceClient, tmp_path: Path) -> None:
    assert await client.download("/model", tmp_path / "m") == len(MODEL)
    assert (tmp_path / "m").read_bytes() == MODEL
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


async def test_a_download_that_breaks_off_leaves_what_was_there(
    client: ServiceClient, tmp_path: Path
) -> None:
    (tmp_path / "m").write_bytes(b"old")
    with pytest.raises(Unavailable, match="does not answer"):
        await client.download("/torn", tmp_path / "m")
    with pytest.raises(Refused):
        await client.download("/refused", tmp_path / "m")
    assert (tmp_path / "m").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


async def test_a_disk_that_takes_no_download_is_said(client: ServiceClient) -> None:
    with pytest.raises(
        DiskFailed, match=r"^/dev/full cannot be written: No space left on device; free space"
    ):
        await client.download("/model", Path("/dev/full"))


async def test_nobody_listening_is_said_with_what_to_start(tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        async with ServiceClient(url, tls=None, start_hint="trellis server") as client:
            with pytest.raises(Unavailable, match=r"does not answer: .*; start it with `trellis server`"):
                await client.get("/")
            with pytest.raises(Unavailable, match="start it with `trellis server`"):
                await client.download("/", tmp_path / "m")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("ftp://127.0.0.1", "must be http"),
        ("127.0.0.1:8080", "must be http"),
        ("http://", "must be http"),
        ("http://127.0.0.1:x", "must be http"),
        ("http://127.0.0.1:99999", "must be http"),
        ("http://[::1", "must be http"),
        ("http://10.0.0.5:8080", "leaves this machine unencrypted: use https:// and --keys"),
        ("http://localhost.evil.example:1", "leaves this machine unencrypted"),
        ("https://10.0.0.5:8080", "needs a certificate of our CA: give --keys"),
    ],
)
def test_a_url_that_cannot_be_used_is_a_config_error(url: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ServiceClient(url, tls=None)


async def test_a_taken_port_is_said_with_its_owner(app: FastAPI, server: HttpServer) -> None:
    taken = (
        rf"port {server.port} on 127.0.0.1: is taken by .+ \(pid {os.getpid()}\): end it or choose another"
    )
    with pytest.raises(ConfigError, match=taken):
        async with HttpServer(app, host="127.0.0.1", port=server.port, tls=None):
            pytest.fail("two servers on one port")


@pytest.mark.parametrize(
    ("host", "port", "message"),
    [
        ("127.0.0.1", 65536, "must be 0 to 65535"),
        ("127.0.0.1", -1, "must be 0 to 65535"),
        ("[::2]", 0, "beyond loopback"),
        ("0.0.0.0", 0, "is beyond loopback, where nothing goes unencrypted: give --keys, or use 127.0.0.1"),  # noqa: S104 - it must be refused
        ("", 0, "beyond loopback"),
    ],
)
async def test_what_cannot_be_bound_is_said(app: FastAPI, host: str, port: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        async with HttpServer(app, host=host, port=port, tls=None):
            pytest.fail("it was bound")


def test_what_is_loopback() -> None:
    assert all(is_loopback(host) for host in ("localhost", "127.0.0.1", "127.9.9.9", "::1", "[::1]"))
    assert not any(
        is_loopback(host)
        for host in ("", "0.0.0.0", "::", "10.0.0.5", "localhost.example", "127.1.example")  # noqa: S104 - not bound
    )


async def test_a_hanging_request_does_not_keep_the_server(app: FastAPI) -> None:
    async with httpx.AsyncClient(trust_env=False) as http:
        async with HttpServer(app, host="127.0.0.1", port=0, tls=None) as server:
            port = server.port
            request = asyncio.create_task(http.get(f"{server.url}/hang", timeout=120))
            await asyncio.wait_for(app.state.hanging.wait(), 30)
            started = time.monotonic()
        assert time.monotonic() - started < 14
        with socket.socket() as again:
            assert again.connect_ex(("127.0.0.1", port)) != 0
        request.cancel()


@pytest.fixture
def tls(tmp_path: Path) -> dict[str, TlsFiles]:
    files = {}
    for fleet in ("ours", "theirs"):
        root = tmp_path / fleet
        create_authority(root)
        for role, principal in (("server", SERVER), ("gateway", gateway("eu-1"))):
            folder = issue(root, principal, ["127.0.0.1"])
            files[f"{fleet}-{role}"] = TlsFiles(folder / "ca.crt", folder / "tls.crt", folder / "tls.key")
    return files


async def test_tls_is_mutual_within_one_ca(app: FastAPI, tls: dict[str, TlsFiles]) -> None:
    async with HttpServer(app, host="127.0.0.1", port=0, tls=tls["ours-server"]) as server:
        assert server.url.startswith("https://127.0.0.1:")
        async with ServiceClient(server.url, tls=tls["ours-gateway"]) as client:
            assert await client.get("/number", n=1) == {"n": 1}
        async with ServiceClient(server.url, tls=tls["theirs-gateway"]) as client:
            with pytest.raises(Unavailable, match="certificate verify failed"):
                await client.get("/number", n=1)
        theirs, ours = tls["theirs-gateway"], tls["ours-gateway"]
        stranger = TlsFiles(ca=ours.ca, cert=theirs.cert, key=theirs.key)
        async with ServiceClient(server.url, tls=stranger) as client:
            with pytest.raises(Unavailable, match="does not answer"):
                await client.get("/number", n=1)
        async with httpx.AsyncClient(verify=False, trust_env=False) as nobody:  # noqa: S501 - a stranger's
            with pytest.raises(httpx.TransportError):
                await nobody.get(f"{server.url}/number", params={"n": 1})
            with pytest.raises(httpx.TransportError):
                await nobody.get(server.url.replace("https", "http"))
