"""A task that comes again while what was said of it is being cleared."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, cast

from device_agent.desk import TaskDesk
from device_agent.participation import Device
from trellis.payloads import Execution, ExecutionState


class SlowToClear:
    """A bus that takes an empty payload only when it is let."""

    def __init__(self) -> None:
        self.said: list[bytes] = []
        self.clearing, self.let = asyncio.Event(), asyncio.Event()

    async def publish(self, topic: str, payload: bytes, **_: Any) -> None:
        assert topic.endswith("/tasks/blobs/execution")
        if not payload:
            self.clearing.set()
            await self.let.wait()
        self.said.append(payload)


async def test_a_task_that_comes_again_while_it_is_cleared_is_said_after_that(
    device: Device, make_task: Callable[..., Any], signed: Callable[..., bytes]
) -> None:
    bus = SlowToClear()
    desk = TaskDesk(device, cast(Any, bus), cast(Any, None), now=lambda: datetime.now(UTC))
    await desk.descriptor("blobs", signed(make_task()))
    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        tasks.create_task(desk.removed("blobs"))
        await bus.clearing.wait()
        again = tasks.create_task(desk.descriptor("blobs", signed(make_task(revision=2))))
        await asyncio.sleep(0)  # it gets as far as it can
        assert not again.done()
        bus.let.set()
    *_, cleared, last = bus.said
    assert cleared == b""
    execution = Execution.parse(last)
    assert (execution.state, execution.revision) == (ExecutionState.QUEUED, 2)
    [standing] = desk.standing()
    assert standing.payload == last
