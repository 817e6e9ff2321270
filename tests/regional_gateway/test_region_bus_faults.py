# ruff: noqa: PLR0917 - fixtures are parameters, which pytest passes by name
"""What a gateway's bus meets beside a task that its region averages ends the gateway, and not the task."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from bus_faults import Subscribe, faults_of_the_bus

from tests.regional_gateway.conftest import DEADLINE_S
from tests.regional_gateway.test_region_troubles import REGIONAL, waits
from trellis.errors import TrellisError, leaves
from trellis.mqtt import memory


@faults_of_the_bus
async def test_a_bus_that_fails_beside_a_regions_task_ends_the_gateway_and_the_task_goes_on_at_its_next_start(
    world: Any,
    watching: Any,
    wait_until: Any,
    operator: Any,
    monkeypatch: pytest.MonkeyPatch,
    subscribe: Subscribe,
    due: type[TrellisError],
) -> None:
    async def serve_until_it_ends(broken: pytest.MonkeyPatch) -> None:
        async with world.gateway(front=True) as running:
            await running.post(operator.envelope(**REGIONAL))
            await wait_until(lambda: waits(seen))
            broken.setattr(memory._MemorySession, "subscribe", subscribe)
            world.region.cut(next(one for one in world.region._sessions if one.startswith("eu-1/")))
            await asyncio.wait({running.task}, timeout=DEADLINE_S)
            assert running.task.done()

    world.script = ["answers", "answers"]
    async with watching(world.region) as seen:
        with monkeypatch.context() as broken, pytest.raises(BaseExceptionGroup) as ended:
            await serve_until_it_ends(broken)
        assert {type(one) for one in leaves(ended.value)} == {due}
        async with world.gateway(front=True) as running:
            await wait_until(lambda: (task := running.gateway.tier._tasks.get("digits")) and task.runs.app)
            await wait_until(lambda: waits(seen))
