"""What `trellis doctor` says of the certificates that others show."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from fastapi import FastAPI

from trellis.cli.doctor.check import Check, Status
from trellis.cli.doctor.peers import certificate
from trellis.http.server import HttpServer
from trellis.keys import certificates
from trellis.keys.authority import create_authority, issue
from trellis.keys.identity import Identity
from trellis.keys.principals import SERVER
from trellis.keys.renewal import renew
from trellis.tls import TlsFiles


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    create_authority(tmp_path / "keys")
    issue(tmp_path / "keys", SERVER)
    return tmp_path / "keys"


async def looked(url: str | None, keys: Path) -> Check:
    return await certificate("server.certificate", url, keys)


def renewed(keys: Path, days: int) -> str:
    """Renew the server's certificate, and return the day of its end."""
    (entry,) = renew(keys, ["central/server"], days=days)
    return f"{entry.not_after:%Y-%m-%d}"


async def test_what_was_renewed_counts_once_it_is_shown(keys: Path) -> None:
    first = renewed(keys, 29)
    tls = Identity.load(keys / "server").tls
    async with HttpServer(FastAPI(), host="127.0.0.1", port=0, tls=tls) as server:
        check = await looked(server.url, keys)
        assert (check.status, check.found) == (
            Status.WARNING,
            f"that of 'central/server' holds until {first}",
        )
        assert "trellis keys renew central/server" in check.remedy
        second = renewed(keys, 365)
        assert await looked(server.url, keys) == check
    async with HttpServer(FastAPI(), host="127.0.0.1", port=0, tls=tls) as server:
        check = await looked(server.url.replace("https", "mqtts"), keys)
        assert (check.status, check.found) == (Status.OK, f"that of 'central/server' holds until {second}")


async def test_one_that_has_ended_is_a_failure_with_its_end(
    keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(certificates, "_days", lambda days: days)
    end = renewed(keys, 0)
    own = keys / "server"
    tls = TlsFiles(own / "ca.crt", own / "tls.crt", own / "tls.key")
    async with HttpServer(FastAPI(), host="127.0.0.1", port=0, tls=tls) as server:
        check = await looked(server.url, keys)
    assert (check.status, check.found) == (Status.FAILURE, f"that of 'central/server' ended {end}")


@pytest.mark.parametrize("url", [None, "http://127.0.0.1:1", "mqtt://127.0.0.1:1", "127.0.0.1:8000"])
async def test_where_there_is_no_tls_it_is_skipped(url: str | None, keys: Path) -> None:
    assert (await looked(url, keys)).status is Status.SKIPPED


async def test_what_does_not_answer_is_anothers_to_tell(keys: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
    for url in (f"https://127.0.0.1:{port}", "https://[::1", "https://127.0.0.1:99999"):
        check = await looked(url, keys)
        assert (check.status, check.name) == (Status.SKIPPED, "server.certificate")
    assert "keys in nowhere" in (await looked("https://127.0.0.1:1", Path("nowhere"))).found
