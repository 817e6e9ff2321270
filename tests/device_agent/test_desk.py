"""What comes of a task while something is said of it: the last word counts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from device_agent.desk import TaskDesk
from device_agent.journal import Journal
from device_agent.participation import Device
from trellis.errors import DiskFailed
from trellis.payloads import Execution, ExecutionState, Phase


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


class Held:
    """A bus that holds the first execution of a kind until it is let."""

    def __init__(self, state: ExecutionState) -> None:
        self.said: list[Execution] = []
        self.holding, self.let = asyncio.Event(), asyncio.Event()
        self.waits = asyncio.Event()  # a task that was begun does
        self._state = state

    async def publish(self, topic: str, payload: bytes, **_: Any) -> None:
        execution = Execution.parse(payload)
        self.said.append(execution)
        if execution.phase is Phase.WAITING:
            self.waits.set()
        if execution.state is self._state and not self.holding.is_set():
            self.holding.set()
            await self.let.wait()


async def test_a_revision_that_comes_while_the_one_before_it_ends_for_a_full_disk_stays(
    device: Device, flower: Any, make_task: Callable[..., Any], signed: Callable[..., bytes]
) -> None:
    disks = [DiskFailed("the disk is full")]

    def make_link(address: str, folder: Path) -> Any:
        if disks:
            raise disks.pop()
        return flower(address, folder)

    bus = Held(ExecutionState.REJECTED)
    log = SimpleNamespace(task=None)
    desk = TaskDesk(
        replace(device, make_link=make_link), cast(Any, bus), cast(Any, log), now=lambda: datetime.now(UTC)
    )
    working = asyncio.create_task(desk.work())
    try:
        await desk.descriptor("blobs", signed(make_task()))
        await asyncio.wait_for(bus.holding.wait(), 30)
        await desk.descriptor("blobs", signed(make_task(revision=2)))
        bus.let.set()
        await asyncio.wait_for(bus.waits.wait(), 30)
        await desk.look_again()
        assert [one.state for one in bus.said].count(ExecutionState.QUEUED) == 2
        assert bus.said[-1].revision == 2
    finally:
        working.cancel()
        await asyncio.wait([working], timeout=40)


async def test_what_comes_while_tasks_that_waited_for_room_are_taken_up_again_counts(
    device: Device,
    make_task: Callable[..., Any],
    signed: Callable[..., bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: Any) -> None:
        raise DiskFailed("the disk is full")

    bus = Held(ExecutionState.QUEUED)
    desk = TaskDesk(device, cast(Any, bus), cast(Any, None), now=lambda: datetime.now(UTC))
    with monkeypatch.context() as disk:
        disk.setattr(Journal, "believe", full)
        for task in ("one", "two"):
            await desk.descriptor(task, signed(make_task(task=task)))
    looking = asyncio.create_task(desk.look_again())
    await asyncio.wait_for(bus.holding.wait(), 30)  # "one" is being said
    for task in ("one", "two"):
        await desk.descriptor(task, signed(make_task(task=task, revision=2)))
    bus.let.set()
    await asyncio.wait_for(looking, 30)
    assert [(one.state, one.revision) for one in bus.said] == [
        *2 * [(ExecutionState.REJECTED, 1)],
        (ExecutionState.QUEUED, 1),
        *2 * [(ExecutionState.QUEUED, 2)],
    ]
    assert {task: one.descriptor.revision for task, one in desk._queue.items()} == {"one": 2, "two": 2}
