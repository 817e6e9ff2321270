"""What a tier's front passes of artefacts, over a real socket: their paths by GET, and nothing beside."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import pytest_asyncio
from artefact_fronts import CONTENT, DIGEST, OneFile

from trellis.artefacts import serving
from trellis.artefacts.serving import create_artefact_app
from trellis.http.server import HttpServer
from trellis.keys.authority import create_authority, issue
from trellis.keys.identity import Identity
from trellis.keys.principals import SERVER, device, gateway
from trellis.tier.door import Front
from trellis.tls import client_context


@pytest.fixture
def source(tmp_path: Path) -> OneFile:
    (tmp_path / "secret").write_text("a key")
    return OneFile(tmp_path / "files")


@pytest_asyncio.fixture
async def port(source: OneFile) -> AsyncIterator[int]:
    app = Front(create_artefact_app(source))
    async with HttpServer(app, host="127.0.0.1", port=0, tls=None) as server:
        yield server.port


async def raw(port: int, line: str) -> tuple[int, bytes]:
    """Ask with a request line that no client would send, and return status and body."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"{line} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode())
    answer = await asyncio.wait_for(reader.read(), 30)
    writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split(b" ", 2)[1]), body


async def test_an_artefact_is_given_whole_or_in_part(port: int) -> None:
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as http:
        whole = await http.get(f"/v1/artefacts/{DIGEST}")
        assert (whole.status_code, whole.content) == (200, CONTENT)
        rest = await http.get(f"/v1/artefacts/{DIGEST}", headers={"range": "bytes=1000-"})
        assert (rest.status_code, rest.content) == (206, CONTENT[1000:])
        assert rest.headers["content-range"] == f"bytes 1000-{len(CONTENT) - 1}/{len(CONTENT)}"
        beyond = await http.get(f"/v1/artefacts/{DIGEST}", headers={"range": f"bytes={len(CONTENT)}-"})
        assert beyond.status_code == 416


@pytest.mark.parametrize("asked", ["bytes=0-1,2-3", "bytes=-5", "bytes=" + "0-," * 5000, "lines=1-2"])
async def test_a_range_is_one_from_a_byte_on(port: int, asked: str) -> None:
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as http:
        answer = await http.get(f"/v1/artefacts/{DIGEST}", headers={"range": asked})
    assert answer.status_code == 400
    assert "bytes=FROM-" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        (f"/v1/artefacts/{'0' * 64}", "there is no artefact"),
        ("/v1/artefacts/0", "there is no artefact"),
        ("/v1/tasks/digits/artefacts/torch", "trains from no artefact"),
    ],
)
async def test_what_is_unknown_is_said_to_be(port: int, path: str, problem: str) -> None:
    status, body = await raw(port, f"GET {path}")
    assert status == 404
    assert problem.encode() in body


@pytest.mark.parametrize(
    "line",
    [
        "GET /v1/artefacts/../secret",
        "GET /v1/artefacts/..%2fsecret",
        f"GET /v1/artefacts/%2e%2e/{DIGEST}",
        f"GET /v1/artefacts/{DIGEST}?x=1",
        f"GET /v1/%61rtefacts/{DIGEST}",
        f"GET /v1/artefacts/{DIGEST}/",
        f"GET /v1/artefacts/{DIGEST.upper()}",
        f"POST /v1/artefacts/{DIGEST}",
        f"DELETE /v1/artefacts/{DIGEST}",
        f"PUT /v1/artefacts/{DIGEST}",
        "GET /v1/tasks/digits/artefacts/../../../secret",
        "GET /v1/tasks/digits",
        "GET /openapi.json",
        "GET /docs",
    ],
)
async def test_everything_else_never_comes_to_the_artefacts(port: int, source: OneFile, line: str) -> None:
    status, body = await raw(port, line)
    # Without a SuperLink all that is not an artefact's is asked to come again.
    assert (status, body) == (503, b"the SuperLink is starting")
    assert source.given == 0


async def test_a_front_lets_in_whom_it_is_for_and_says_why_not(source: OneFile, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    create_authority(keys)
    members = (device("eu-1", "cam-7"), gateway("eu-2"))
    folders = {one: issue(keys, one) for one in (SERVER, *members, device("us-1", "cam-7"))}
    app = Front(create_artefact_app(source), members.__contains__)
    async with HttpServer(
        app, host="127.0.0.1", port=0, tls=Identity.load(folders.pop(SERVER)).tls
    ) as server:
        for principal, folder in folders.items():
            context = client_context(Identity.load(folder).tls)
            async with httpx.AsyncClient(base_url=server.url, verify=context, trust_env=False) as http:
                asked = [
                    await http.post("/v1/fleet/pull-messages"),
                    await http.get(f"/v1/artefacts/{DIGEST}"),
                ]
            if principal in members:
                assert [one.status_code for one in asked] == [503, 200]  # it has no SuperLink
            else:
                assert [one.status_code for one in asked] == [403, 403]
                said = (
                    'this front is for other regions than that of "us-1/devices/cam-7": give --server its own'
                )
                assert asked[0].text == said
                assert asked[1].json() == {"error": {"code": "region", "message": said}}


async def test_who_comes_when_many_are_served_is_asked_to_come_again(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "MOST_AT_ONCE", 0)
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as http:
        answer = await http.get(f"/v1/artefacts/{DIGEST}")
        assert answer.status_code == 503
        assert answer.headers["retry-after"] == "2"
        monkeypatch.setattr(serving, "MOST_AT_ONCE", 1)
        async with asyncio.timeout(30):
            for _ in range(3):  # each gives its place back, a moment after its last byte
                while (await http.get(f"/v1/artefacts/{DIGEST}")).status_code != 200:  # noqa: ASYNC110 - HTTP
                    await asyncio.sleep(0.01)


async def test_the_log_says_what_was_sent(port: int, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "trellis.artefacts"):
        await raw(port, f"GET /v1/artefacts/{DIGEST}")
    assert f"artefact {DIGEST}: all to 127.0.0.1" in caplog.text
