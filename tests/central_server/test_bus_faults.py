"""What the server's bus meets beside a running task ends the server, and not the task."""

from __future__ import annotations

import asyncio

import pytest
from bus_faults import Subscribe, faults_of_the_bus

from tests.central_server.parts import WAIT_S, Launcher, descriptor, until
from trellis.errors import TrellisError, leaves
from trellis.mqtt import memory


@faults_of_the_bus
async def test_a_bus_that_fails_beside_a_task_ends_the_server_and_the_task_goes_on_at_the_next_start(
    launch: Launcher, monkeypatch: pytest.MonkeyPatch, subscribe: Subscribe, due: type[TrellisError]
) -> None:
    async def serve_until_it_ends(broken: pytest.MonkeyPatch) -> None:
        async with launch() as running:
            await running.post(descriptor())
            await until(lambda: running.server._tasks.find("digits-mlp").runs.app)
            serving = next(task for task in asyncio.all_tasks() if task.get_name() == "server")
            broken.setattr(memory._MemorySession, "subscribe", subscribe)
            launch.broker.cut("trellis-central-server")
            await asyncio.wait({serving}, timeout=WAIT_S)
            assert serving.done()

    launch.script = ["deaf"]
    with monkeypatch.context() as broken, pytest.raises(BaseExceptionGroup) as ended:
        await serve_until_it_ends(broken)
    assert {type(one) for one in leaves(ended.value)} == {due}
    launch.script = ["works"]
    async with launch() as running:
        await running.reach("succeeded")
