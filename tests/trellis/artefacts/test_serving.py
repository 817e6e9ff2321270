"""Sending artefacts: nobody who reads slowly, or asks often, keeps the others from theirs."""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path

import httpx
import psutil
import pytest
from artefact_fronts import CONTENT, DIGEST, OneFile
from starlette.types import Message, Receive, Scope, Send

from trellis.artefacts import serving
from trellis.artefacts.offer import file_path
from trellis.artefacts.serving import create_artefact_app
from trellis.http.server import HttpServer
from trellis.keys.principals import SERVER

LARGE = bytes(32 * 1024**2)
"""More than two sockets hold."""


@asynccontextmanager
async def server(source: OneFile) -> AsyncIterator[int]:
    """Serve to whom the header `who` names, as a certificate would."""
    app = create_artefact_app(source)

    async def named(scope: Scope, receive: Receive, send: Send) -> None:
        who = dict(scope["headers"]).get(b"who")
        scope["state"]["principal"] = who and who.decode()
        await app(scope, receive, send)

    async with HttpServer(named, host="127.0.0.1", port=0, tls=None) as http:
        yield http.port


def asker(port: int) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30)


@contextmanager
def unread(port: int, source: OneFile, who: str | None = "slow") -> Iterator[socket.socket]:
    """Ask for the file, and read only the first byte of the answer."""
    with socket.socket() as asking:
        asking.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        asking.settimeout(30)
        asking.connect(("127.0.0.1", port))
        path = file_path(source.offered.sha256)
        named = "" if who is None else f"who: {who}\r\n"
        asking.sendall(f"GET {path} HTTP/1.1\r\nhost: x\r\n{named}\r\n".encode())
        assert asking.recv(1) == b"H"
        yield asking


@pytest.mark.parametrize("limit", ["PIECE_S", "MOST_S"])
async def test_who_does_not_read_is_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    monkeypatch.setattr(serving, limit, 0.3)
    source = OneFile(tmp_path, LARGE)
    async with server(source) as port:
        with ExitStack() as asking:
            await asyncio.to_thread(asking.enter_context, unread(port, source))
            async with asyncio.timeout(20):  # the other limit is 30 s or more
                while any(  # noqa: ASYNC110 - the kernel's count, and no event
                    one.laddr.port == port and one.status == psutil.CONN_ESTABLISHED
                    for one in psutil.Process().net_connections()
                ):
                    await asyncio.sleep(0.05)


async def test_one_principal_leaves_room_for_the_others(tmp_path: Path) -> None:
    source = OneFile(tmp_path, LARGE)
    async with server(source) as port, asker(port) as client:
        with ExitStack() as asking:
            for _ in range(4):
                await asyncio.to_thread(asking.enter_context, unread(port, source))
            path, part = file_path(source.offered.sha256), {"range": "bytes=0-9"}
            again = await client.get(path, headers={"who": "slow", **part})
            assert (again.status_code, again.json()["error"]["code"]) == (503, "not-yet")
            assert (await client.get(path, headers={"who": "other", **part})).content == bytes(10)


async def test_a_proxy_with_the_servers_certificate_has_room_for_all_devices_behind_it(
    tmp_path: Path,
) -> None:
    source = OneFile(tmp_path, LARGE)
    async with server(source) as port, asker(port) as client:
        with ExitStack() as asking:
            for _ in range(serving.MOST_EACH):
                await asyncio.to_thread(asking.enter_context, unread(port, source, SERVER.common_name))
            asked = {"who": SERVER.common_name, "range": "bytes=0-9"}
            part = await client.get(file_path(source.offered.sha256), headers=asked)
            assert part.content == bytes(10)


async def test_without_certificates_nobody_is_told_apart(tmp_path: Path) -> None:
    source = OneFile(tmp_path, LARGE)
    async with server(source) as port, asker(port) as client:
        with ExitStack() as asking:
            for _ in range(serving.MOST_EACH):
                await asyncio.to_thread(asking.enter_context, unread(port, source, who=None))
            part = await client.get(file_path(source.offered.sha256), headers={"range": "bytes=0-9"})
            assert part.content == bytes(10)


async def test_who_has_been_served_is_forgotten(tmp_path: Path) -> None:
    now: Counter[str | None] = Counter()
    counted: list[int] = []

    async def send(message: Message) -> None:
        counted.append(now["cam-7"])

    async def receive() -> Message:
        return {"type": "http.request"}

    scope = {"type": "http", "method": "GET", "headers": [], "state": {}}
    await serving._Counted(OneFile(tmp_path).path, "cam-7", now)(scope, receive, send)
    assert (set(counted), dict(now)) == ({1}, {})


async def test_one_principal_may_come_any_number_of_times_one_after_the_other(tmp_path: Path) -> None:
    source = OneFile(tmp_path)
    async with server(source) as port, asker(port) as client:
        asked = {"range": "bytes=0-9", "who": "often"}
        for _ in range(3 * serving.MOST_EACH):
            async with asyncio.timeout(30):
                # A place is given back a moment after the last byte.
                while (answer := await client.get(file_path(DIGEST), headers=asked)).status_code != 206:
                    assert answer.json()["error"]["code"] == "not-yet"
                    await asyncio.sleep(0.01)
            assert answer.content == CONTENT[:10]


async def test_a_range_goes_on_with_the_same_content(tmp_path: Path) -> None:
    source = OneFile(tmp_path)
    async with server(source) as port, asker(port) as client:
        path = file_path(DIGEST)
        tag = (await client.get(path)).headers["etag"]
        assert tag == f'"{DIGEST}"'
        source.path.touch()
        rest = await client.get(path, headers={"range": "bytes=9-", "if-range": tag})
        assert (rest.status_code, rest.content) == (206, CONTENT[9:])
