"""More tasks than devices can do at once, posted in one moment."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from federation import Device, Federation

from trellis.cli.task.delivery import post_to_gateways, post_to_server, read_signed

pytestmark = [pytest.mark.long, pytest.mark.timeout(400)]

TASKS = tuple(f"crowd-{number}" for number in range(10))
DEADLINE_S = 15.0
"""Far less than the last of them waits for its turn."""


async def post(fleet: Federation, name: str, *, gateways_first: bool) -> None:
    """Post a task as `trellis task run` does; two operators at once may reach regions in any order."""
    task = read_signed(fleet.folder / f"{name}.yaml", fleet.keys)
    urls = sorted(fleet.gateway_urls.items(), reverse=gateways_first)
    await post_to_server(task, fleet.server_url, fleet.keys)
    for region, url in urls:
        await post_to_gateways(task, {region: url}, fleet.keys)


async def test_ten_tasks_posted_at_once_are_done_one_after_the_other_by_the_same_devices(
    tmp_path: Path,
) -> None:
    devices = (Device("d1", "eu-1"), Device("d2", "us-1"))
    async with Federation(tmp_path / "fleet", devices=devices) as fleet:
        for name in TASKS:
            fleet.task(name, train={"rounds": 1}, participants={"deadline_s": DEADLINE_S})
        began = time.monotonic()
        await asyncio.gather(*(post(fleet, name, gateways_first=n % 2 == 1) for n, name in enumerate(TASKS)))
        views = [await fleet.ended(name, within_s=300) for name in TASKS]
        print(f"{len(TASKS)} tasks in {time.monotonic() - began:.1f} s")
        assert {one["replied"] for view in views for one in view["history"]} == {2}
        for name in TASKS:
            for device in fleet.specs:
                await fleet.mqtt.field(fleet.execution(device, name), "state", "SUCCEEDED")
                assert fleet.mqtt.said(fleet.execution(device, name), "state")[0] == "QUEUED"
