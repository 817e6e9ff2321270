"""The SuperLink as a child of ours, and the front before it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import psutil
import pytest
from flower_parts import scripted_app

from trellis.flower.front import FleetFront
from trellis.flower.superlink import SuperLink
from trellis.http.server import HttpServer

pytestmark = pytest.mark.timeout(120)

SERVICE = Path(__file__).parent / "superlink_service.py"


def alive(pids: list[int]) -> list[int]:
    return [p for p in pids if psutil.pid_exists(p) and psutil.Process(p).status() != psutil.STATUS_ZOMBIE]


async def until_gone(pids: list[int], within_s: float) -> None:
    deadline = time.monotonic() + within_s
    while alive(pids):
        assert time.monotonic() < deadline, f"still running: {alive(pids)}"
        await asyncio.sleep(0.05)


async def test_the_front_lets_only_the_fleet_api_through(tmp_path: Path) -> None:
    async with (
        SuperLink(folder=tmp_path) as superlink,
        HttpServer(FleetFront(superlink.address), host="127.0.0.1", port=0, tls=None) as front,
        httpx.AsyncClient() as client,
    ):
        headers = {"content-type": "application/x-protobuf"}
        inside = await client.post(f"http://{superlink.address}/v1/control/start-run", headers=headers)
        assert inside.status_code != 404, "the Control API is there, or this test proves nothing"
        for path in ("/v1/control/start-run", "/v1/runtime/pull-messages", "/health", "/docs", "/v1/fleet/"):
            assert (await client.post(front.url + path, headers=headers)).status_code == 404, path
            assert (await client.get(front.url + path)).status_code == 404, path
        through = await client.post(f"{front.url}/v1/fleet/pull-messages", headers=headers)
        assert through.status_code not in {404, 503}


async def test_leaving_ends_the_superlink_and_its_apps(tmp_path: Path) -> None:
    async with SuperLink(folder=tmp_path) as superlink, scripted_app(superlink, tmp_path):
        tree = [superlink.pid, *(p.pid for p in psutil.Process(superlink.pid).children(recursive=True))]
        assert len(tree) >= 3, "SuperLink, SuperExec and the ServerApp"
    assert alive(tree) == []
    assert not (tmp_path / "superlink.pid").exists()


async def test_after_sigkill_of_the_service_nothing_is_left_once_it_has_been_started_again(
    tmp_path: Path,
) -> None:
    service = subprocess.Popen(
        [sys.executable, str(SERVICE), str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert service.stdout is not None
    superlink_pid = int(await asyncio.to_thread(service.stdout.readline))
    left = [superlink_pid, *(p.pid for p in psutil.Process(superlink_pid).children(recursive=True))]
    assert len(left) >= 3
    # The worst case: the SuperLink dies with its service and can't end its children.
    os.kill(superlink_pid, signal.SIGKILL)
    os.kill(service.pid, signal.SIGKILL)
    service.wait()
    async with SuperLink(folder=tmp_path) as superlink:
        assert alive([pid for pid in left if pid != superlink.pid]) == []


async def test_the_superlink_ends_with_its_service(tmp_path: Path) -> None:
    service = subprocess.Popen(
        [sys.executable, str(SERVICE), str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert service.stdout is not None
    superlink_pid = int(await asyncio.to_thread(service.stdout.readline))
    left = [superlink_pid, *(p.pid for p in psutil.Process(superlink_pid).children(recursive=True))]
    os.kill(service.pid, signal.SIGKILL)
    service.wait()
    await until_gone([superlink_pid], within_s=10)
    async with SuperLink(folder=tmp_path) as superlink:
        assert alive([pid for pid in left if pid != superlink.pid]) == []


async def test_the_death_of_the_superlink_is_noticed(tmp_path: Path) -> None:
    async with SuperLink(folder=tmp_path) as superlink:
        os.kill(superlink.pid, signal.SIGKILL)
        assert await asyncio.wait_for(superlink.wait_ended(), 5) == -signal.SIGKILL
        assert not superlink.alive
