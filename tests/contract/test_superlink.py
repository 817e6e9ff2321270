"""The SuperLink as a child of ours, and the front before it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from contextlib import AsyncExitStack
from pathlib import Path

import httpx
import psutil
import pytest
from flower_parts import APP, scripted_app
from members import is_running

from trellis.errors import Unavailable
from trellis.flower.front import FleetFront
from trellis.flower.link import FlowerLink
from trellis.flower.superlink import SuperLink
from trellis.http.server import HttpServer

pytestmark = pytest.mark.timeout(240)

SERVICE = Path(__file__).parent / "superlink_service.py"


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    return list(filter(is_running, processes))


def apps(folder: Path) -> list[psutil.Process]:
    """Return the processes of apps, by the home that they inherit."""
    home = str((folder / "flower").resolve())
    return [
        process
        for process in psutil.process_iter(["cmdline", "environ"])
        if (process.info["environ"] or {}).get("FLWR_HOME") == home
        and "trellis.flower.app_start" in (process.info["cmdline"] or [])
    ]


async def until_gone(process: psutil.Process, within_s: float = 60.0) -> None:
    deadline = time.monotonic() + within_s
    while is_running(process):
        assert time.monotonic() < deadline, f"still running: {process}"
        await asyncio.sleep(0.05)


async def test_the_front_lets_only_the_fleet_api_through(tmp_path: Path) -> None:
    async with (
        SuperLink(folder=tmp_path) as superlink,
        HttpServer(FleetFront(superlink.address), host="127.0.0.1", port=0, tls=None) as front,
        httpx.AsyncClient(timeout=60) as client,
    ):
        headers = {"content-type": "application/x-protobuf"}
        inside = await client.post(f"http://{superlink.address}/v1/control/start-run", headers=headers)
        assert inside.status_code != 404, "the Control API is there, or this test proves nothing"
        for path in ("/v1/control/start-run", "/v1/runtime/pull-messages", "/health", "/docs", "/v1/fleet/"):
            assert (await client.post(front.url + path, headers=headers)).status_code == 404, path
            assert (await client.get(front.url + path)).status_code == 404, path
        through = await client.post(f"{front.url}/v1/fleet/pull-messages", headers=headers)
        assert through.status_code not in {404, 503}


async def test_the_superlink_lets_go_of_uploads_whose_devices_have_vanished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trellis.http.connections.SILENCE_S", 4.0)
    async with (
        SuperLink(folder=tmp_path) as superlink,
        HttpServer(FleetFront(superlink.address), host="127.0.0.1", port=0, tls=None) as front,
        AsyncExitStack() as stack,
    ):
        process, port = psutil.Process(superlink.pid), int(superlink.address.rpartition(":")[2])

        def held() -> int:
            found = process.net_connections("tcp")
            return sum(one.laddr.port == port and one.status == psutil.CONN_ESTABLISHED for one in found)

        before = held()
        head = b"POST /v1/fleet/push-object HTTP/1.1\r\nhost: f\r\ncontent-length: 1000000\r\n\r\n"
        for _ in range(5):
            _, writer = await asyncio.open_connection("127.0.0.1", front.port)
            stack.callback(writer.close)
            writer.write(head + bytes(900_000))
        async with asyncio.timeout(60):
            while held() < before + 5:  # noqa: ASYNC110 - another process's sockets
                await asyncio.sleep(0.05)
            while held() > before:  # noqa: ASYNC110
                await asyncio.sleep(0.05)


async def test_what_apps_inherit_the_superlink_does_not(tmp_path: Path) -> None:
    token = {"TRELLIS_BACKCHANNEL_TOKEN": "secret"}
    async with SuperLink(folder=tmp_path, environment=token) as superlink:
        assert not token.keys() & psutil.Process(superlink.pid).environ().keys()
        (app,) = apps(tmp_path)
        assert app.environ().items() >= token.items()


async def test_leaving_ends_the_superlink_and_its_apps(tmp_path: Path) -> None:
    async with SuperLink(folder=tmp_path) as superlink, scripted_app(superlink, tmp_path) as app:
        assert await app("nodes") == {"nodes": []}
        ours = [psutil.Process(superlink.pid), *apps(tmp_path)]
        assert len(ours) == 2, "SuperLink and the ServerApp"
        assert alive(ours) == ours
    assert alive(ours) == []
    assert not (tmp_path / "superlink.pid").exists()


async def test_after_sigkill_of_the_service_nothing_is_left_once_it_has_been_started_again(
    tmp_path: Path,
) -> None:
    service = subprocess.Popen(
        [sys.executable, str(SERVICE), str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert service.stdout is not None
    first = psutil.Process(int(await asyncio.to_thread(service.stdout.readline)))
    left = [first, *apps(tmp_path)]
    assert len(left) == 2
    # The worst case: the SuperLink dies with its service and can't end its children.
    first.kill()
    os.kill(service.pid, signal.SIGKILL)
    service.wait()
    async with SuperLink(folder=tmp_path):
        assert alive(left) == []


async def test_the_superlink_ends_with_its_service(tmp_path: Path) -> None:
    service = subprocess.Popen(
        [sys.executable, str(SERVICE), str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert service.stdout is not None
    first = psutil.Process(int(await asyncio.to_thread(service.stdout.readline)))
    left = [first, *apps(tmp_path)]
    os.kill(service.pid, signal.SIGKILL)
    service.wait()
    await until_gone(first)
    async with SuperLink(folder=tmp_path):
        assert alive(left) == []


async def test_the_death_of_the_superlink_is_noticed(tmp_path: Path) -> None:
    async with SuperLink(folder=tmp_path) as superlink:
        os.kill(superlink.pid, signal.SIGKILL)
        assert await asyncio.wait_for(superlink.wait_ended(), 20) == -signal.SIGKILL
        assert not superlink.alive


async def test_an_app_is_imported_before_there_is_a_run_for_it(tmp_path: Path) -> None:
    async with SuperLink(folder=tmp_path, preload=("json",)) as superlink:
        (waiting,) = apps(tmp_path)
        async with scripted_app(superlink, tmp_path) as app:
            assert await app("nodes") == {"nodes": []}
            assert apps(tmp_path) == [waiting]
            # Runs that are submitted at once each get a process of their own.
            async with scripted_app(superlink, tmp_path) as other:
                assert other.run_id != app.run_id
                assert len(apps(tmp_path)) == 2
    assert apps(tmp_path) == []


async def test_what_cannot_be_started_is_said_with_flowers_reason(tmp_path: Path) -> None:
    (tmp_path / "no-app").mkdir()
    async with SuperLink(folder=tmp_path) as superlink:
        with pytest.raises(Unavailable, match=r"took no run: .*pyproject"):
            await superlink.submit(tmp_path / "no-app", {})
    async with SuperLink(folder=tmp_path, preload=("no_such_module",)) as superlink:
        with pytest.raises(Unavailable, match=r"(?s)its process ended: .*No module named 'no_such_module'"):
            await superlink.submit(APP, {})


@pytest.mark.parametrize("proxy", ["http://127.0.0.1:9", "socks5://127.0.0.1:9"])
async def test_a_machines_proxy_stands_between_neither_apps_nor_devices_and_their_superlink(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, proxy: str
) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv(name.lower(), "example.org" if name == "NO_PROXY" else proxy)
    async with (
        SuperLink(folder=tmp_path) as superlink,
        HttpServer(FleetFront(superlink.address), host="127.0.0.1", port=0, tls=None) as front,
        scripted_app(superlink, tmp_path) as app,
    ):
        link = FlowerLink(f"127.0.0.1:{front.port}", folder=tmp_path / "device", tls=None)
        node_id = await asyncio.to_thread(link.connect)
        assert await app("nodes") == {"nodes": [node_id]}
        await superlink.stop_run(app.run_id)
        await asyncio.to_thread(link.close, deactivate=True)
