"""What one device may take of its gateway: so many executions, and only of tasks that were posted."""

from __future__ import annotations

from pathlib import Path

from regional_gateway.fleet import Fleet
from regional_gateway.roster import MAX_EXECUTIONS
from regional_gateway.store import Observations, Store
from regional_gateway.upward import Upward
from trellis.mqtt import BusMessage
from trellis.payloads import Execution, ExecutionState
from trellis.topics import Topics

TASKS = 2000
NEWEST = [f"t{number}" for number in range(TASKS - MAX_EXECUTIONS, TASKS)]


def said(number: int) -> BusMessage:
    payload = Execution(state=ExecutionState.QUEUED, version=1, ts=number).to_bytes()
    return BusMessage(f"trellis/v1/eu-1/devices/cam-7/tasks/t{number}/execution", payload, retain=False)


async def test_what_a_device_pushes_out_leaves_memory_and_disk(tmp_path: Path) -> None:
    async with Store(tmp_path / "gateway.sqlite") as store:
        fleet = Fleet(Topics(), "eu-1", store, lambda _: True, upward := Upward(Topics()))
        for number in range(TASKS):
            assert fleet._fold(said(number)) is not None
            fleet._drop_pushed_out()
            if number % 500 == 0:
                await fleet.save()
        assert [topic.split("/")[-2] for topic in upward.standing] == NEWEST
        await fleet.save()
        stored = await store.observations()
        assert sorted(task for _, task in stored.executions) == sorted(NEWEST)


async def test_rows_of_tasks_that_nobody_posted_go_at_the_next_start(tmp_path: Path) -> None:
    async with Store(tmp_path / "gateway.sqlite") as store:
        await store.save_observations(
            Observations({}, {("cam-7", f"t{number}"): said(number).payload for number in range(TASKS)})
        )
        fleet = Fleet(Topics(), "eu-1", store, lambda task: task == "t7", upward := Upward(Topics()))
        await fleet.load()
        await fleet.save()
        assert list((await store.observations()).executions) == [("cam-7", "t7")]
        assert [topic.split("/")[-2] for topic in upward.standing] == ["t7"]
