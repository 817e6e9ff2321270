"""Who may read over HTTP, told by real certificates."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from fastapi import Depends, FastAPI, Request

from trellis.errors import Refused
from trellis.http.client import ServiceClient
from trellis.http.readers import require_reader
from trellis.http.server import HttpServer, create_app
from trellis.keys.authority import create_authority, issue
from trellis.keys.principals import OPERATOR, SERVER, Principal, device, gateway
from trellis.tls import TlsFiles

PRINCIPALS = (OPERATOR, SERVER, gateway("eu-1"), device("eu-1", "cam-1"))


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("readers") / "keys"
    create_authority(root)
    for principal in PRINCIPALS:
        if not (root / principal.folder / "tls.crt").is_file():
            issue(root, principal, ["127.0.0.1"] if principal.listens else [])
    return root


@pytest.fixture
def app() -> FastAPI:
    app = create_app("under test")

    @app.get("/who")
    async def who(request: Request) -> dict[str, str | None]:
        return {"principal": request.scope["state"]["principal"]}

    @app.get("/secret", dependencies=[Depends(require_reader)])
    async def secret() -> dict[str, int]:
        return {"secret": 1}

    return app


@pytest.fixture
async def server(app: FastAPI, keys: Path) -> AsyncIterator[HttpServer]:
    async with HttpServer(app, host="127.0.0.1", port=0, tls=files(keys, SERVER)) as server:
        yield server


def files(keys: Path, principal: Principal) -> TlsFiles:
    folder = keys / principal.folder
    return TlsFiles(folder / "ca.crt", folder / "tls.crt", folder / "tls.key")


@pytest.mark.parametrize("principal", PRINCIPALS, ids=lambda one: one.common_name)
async def test_a_request_names_the_certificate_it_came_with(
    server: HttpServer, keys: Path, principal: Principal
) -> None:
    async with ServiceClient(server.url, tls=files(keys, principal)) as client:
        for _ in range(2):  # the second comes over the same connection
            assert await client.get("/who") == {"principal": principal.common_name}


@pytest.mark.parametrize("principal", [OPERATOR, SERVER, gateway("eu-1")], ids=lambda one: one.common_name)
async def test_the_operator_the_server_and_gateways_read(
    server: HttpServer, keys: Path, principal: Principal
) -> None:
    async with ServiceClient(server.url, tls=files(keys, principal)) as client:
        assert await client.get("/secret") == {"secret": 1}


async def test_a_device_does_not(server: HttpServer, keys: Path) -> None:
    async with ServiceClient(server.url, tls=files(keys, device("eu-1", "cam-1"))) as client:
        with pytest.raises(Refused, match='not for "eu-1/devices/cam-1"') as caught:
            await client.get("/secret")
    assert caught.value.code == "principal"


async def test_two_peers_are_not_taken_for_each_other(server: HttpServer, keys: Path) -> None:
    async with (
        ServiceClient(server.url, tls=files(keys, OPERATOR)) as ours,
        ServiceClient(server.url, tls=files(keys, device("eu-1", "cam-1"))) as theirs,
    ):
        for _ in range(3):
            assert await ours.get("/secret") == {"secret": 1}
            with pytest.raises(Refused):
                await theirs.get("/secret")


async def test_without_tls_who_is_on_loopback_reads(app: FastAPI) -> None:
    async with (
        HttpServer(app, host="127.0.0.1", port=0, tls=None) as server,
        ServiceClient(server.url, tls=None) as client,
    ):
        assert await client.get("/who") == {"principal": None}
        assert await client.get("/secret") == {"secret": 1}
