"""What stays on the broker of a task that is over: nothing, once its time has passed."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from federation import Device, Federation
from observer import retained

pytestmark = pytest.mark.timeout(400)

KEEP = ("--keep-hours", "0.001")
"""3.6 s: long enough for everybody to learn of the end."""


async def test_a_finished_task_leaves_no_retained_topic(tmp_path: Path) -> None:
    devices = (Device("d1", "eu-1"), Device("d2", "us-1"))
    folder = tmp_path / "fleet"
    async with Federation(folder, devices=devices, server_options=KEEP, gateway_options=KEEP) as fleet:
        before = set(await retained(fleet.broker_url))
        assert {topic.rpartition("/")[2] for topic in before} == {"state", "info"}
        await fleet.submit("brief", train={"rounds": 1})
        await fleet.ended("brief")
        await fleet.submit("dropped", train={"rounds": 2, "local_epochs": 10_000})
        await fleet.mqtt.field(fleet.execution("d1", "dropped"), "phase", "training")
        assert (await fleet.operator("task", "cancel", "dropped")).code == 0
        await fleet.ended("dropped", "canceled")
        deadline = time.monotonic() + 90
        left = set(await retained(fleet.broker_url))
        while left != before and time.monotonic() < deadline:
            await asyncio.sleep(0.2)
            left = set(await retained(fleet.broker_url))
        assert left == before
