"""A later revision of a task that its region averages, while the earlier one is still being put away."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from regional_gateway import tier
from tests.regional_gateway.test_region_troubles import EXECUTION, REGIONAL, shown, waits
from trellis.payloads import Execution, ExecutionState
from trellis.tier.supervision import Supervisor


async def test_a_fault_of_an_earlier_revision_does_not_fail_a_later_one(
    world: Any, watching: Any, wait_until: Any, operator: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken, goes_on = asyncio.Event(), asyncio.Event()
    follow_fleet, abandon = tier.follow_fleet, Supervisor.abandon

    async def fails_once(bus: Any, topics: Any, fleet: Any) -> None:
        if fleet.task == "other" or broken.is_set():
            await follow_fleet(bus, topics, fleet)
        else:
            await broken.wait()
            raise RuntimeError("a bug")

    async def waits_first(supervisor: Supervisor, task: Any) -> None:
        await goes_on.wait()
        await abandon(supervisor, task)

    monkeypatch.setattr(tier, "follow_fleet", fails_once)
    monkeypatch.setattr(Supervisor, "abandon", waits_first)
    world.script = ["answers"] * 3
    async with world.gateway(front=True) as running, watching(world.region) as seen:
        tasks = running.gateway.tier._tasks
        await running.post(operator.envelope(task="other", **REGIONAL))  # so that the SuperLink stays
        await wait_until(lambda: waits(seen, "other"))
        await running.post(operator.envelope(**REGIONAL))
        await wait_until(lambda: waits(seen))
        first = tasks["digits"]
        broken.set()
        await wait_until(lambda: first.ended)
        await running.post(operator.envelope(revision=2, **REGIONAL))
        await wait_until(lambda: "digits" not in tasks)
        goes_on.set()
        await wait_until(lambda: waits(seen) and shown(seen).revision == 2)
        said = [Execution.parse(data) for topic, data in seen.heard if topic == EXECUTION.format("digits")]
        failed = ExecutionState.FAILED
        assert [one for one in said if (one.state, one.revision) == (failed, 2)] == []
