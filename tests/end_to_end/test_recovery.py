"""Any process may be killed in mid-task and started again with the same command: the task goes on."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_asyncio
from federation import Device, Federation
from gate import Held
from members import command_line, is_running
from tensors_apart import greatest_difference

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(400)]

# The third has three times as much to train: the others wait for it in each round.
DEVICES = (
    Device("d1", "eu-1", partition="0/6"),
    Device("d2", "eu-1", partition="1/6"),
    Device("d3", "us-1", partition="1/2"),
)
STEADY = {"rounds": 4, "local_epochs": 120}
"""Rounds of a second or two: long enough to be in one when the kill comes."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fleet(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Federation]:
    folder = tmp_path_factory.mktemp("recovery") / "fleet"
    async with Federation(folder, devices=DEVICES, cold=True, gated=True) as started:
        yield started


async def started(fleet: Federation, task: str, strategy: str = "fedavg") -> Held:
    """Return once the task's first round is over, so that there is a checkpoint and work left.

    Round 2 does not end before what is returned is released: it is d3's update.
    """
    held = fleet.hold_update("d3", task, 2)
    await fleet.submit(task, train=STEADY, strategy={"name": strategy})
    await fleet.rounds_done(task, 1)
    return held


async def whole(fleet: Federation, task: str) -> dict[str, Any]:
    """Return the account of a task that has ended with all its rounds, each once and with everybody."""
    view = await fleet.ended(task)
    assert [one["round"] for one in view["history"]] == [1, 2, 3, 4]
    assert {one["replied"] for one in view["history"]} == {3}
    return view


_uninterrupted: dict[str, Path] = {}


async def uninterrupted(fleet: Federation, strategy: str) -> Path:
    """Return the model of a task that nothing has disturbed; trained once a strategy."""
    if strategy not in _uninterrupted:
        (await started(fleet, f"calm-{strategy}", strategy)).release()
        await whole(fleet, f"calm-{strategy}")
        _uninterrupted[strategy] = await fleet.model(f"calm-{strategy}")
    return _uninterrupted[strategy]


@pytest.mark.parametrize("strategy", ["fedavg", pytest.param("fedadam", marks=pytest.mark.long)])
async def test_a_killed_server_resumes_and_ends_with_the_model_of_an_uninterrupted_run(
    fleet: Federation, strategy: str
) -> None:
    reference = await uninterrupted(fleet, strategy)
    task = f"killed-{strategy}"
    held = await started(fleet, task, strategy)
    said = len(fleet.devices["d1"].said())

    def has_uploaded() -> bool:
        execution = fleet.mqtt.latest[fleet.execution("d1", task)]
        return (execution.get("round"), execution.get("phase")) == (2, "uploaded")

    await fleet.mqtt.until(has_uploaded, "d1's second answer")
    fleet.server.kill()
    held.release()
    await fleet.mqtt.field("central/state", "state", "offline")
    fleet.server.start()
    view = await whole(fleet, task)
    assert view["round"] == 4
    # A new Flower run asks again what the one before it had been answered and had not averaged.
    assert len({line.partition(" run=")[2].split()[0] for line in runs_of(fleet, task)}) == 2
    assert "was trained before: answered from the journal" in fleet.devices["d1"].said()[said:]
    assert greatest_difference(reference, await fleet.model(task)) <= 1e-5
    assert f"task={task} state=running round=" in fleet.server.said().split("=== trellis")[-1]


def processes_of(fleet: Federation, part: str) -> list[psutil.Process]:
    return [one for one in fleet.server.descendants() if part in command_line(one) and is_running(one)]


def runs_of(fleet: Federation, task: str) -> list[str]:
    """Return the lines in which the server says that a ServerApp has come."""
    lines = fleet.server.said().splitlines()
    return [line for line in lines if f"task={task} run=" in line and "the app is there" in line]


async def until_runs(fleet: Federation, task: str, count: int, within_s: float) -> None:
    deadline = time.monotonic() + within_s
    while len(runs_of(fleet, task)) < count:
        assert time.monotonic() < deadline, f"{count} runs of {task} not within {within_s:g} s"
        await asyncio.sleep(0.05)


@pytest.mark.long
async def test_a_killed_server_app_is_followed_by_a_new_run(fleet: Federation) -> None:
    held = await started(fleet, "app")
    (line,) = runs_of(fleet, "app")
    os.kill(int(line.partition("pid=")[2].partition(":")[0]), signal.SIGKILL)
    killed = time.monotonic()
    held.release()
    await until_runs(fleet, "app", 2, within_s=60)
    # 5 s are due; where other tests have both processors, an interpreter alone takes as long to start.
    print(f"a new run {time.monotonic() - killed:.1f} s after the ServerApp's death")
    await whole(fleet, "app")
    assert len(runs_of(fleet, "app")) == 2


@pytest.mark.long
async def test_a_killed_superlink_is_followed_by_another_and_the_task_goes_on(fleet: Federation) -> None:
    held = await started(fleet, "link")
    (superlink,) = processes_of(fleet, "bin/flower-superlink")
    superlink.kill()
    killed = time.monotonic()
    held.release()
    await until_runs(fleet, "link", 2, within_s=60)
    print(f"a new run {time.monotonic() - killed:.1f} s after the SuperLink's death")
    await whole(fleet, "link")
    assert not is_running(superlink)


@pytest.mark.long
async def test_a_task_goes_on_while_a_gateway_is_killed_and_started_again(fleet: Federation) -> None:
    held = await started(fleet, "gate")
    fleet.gateways["eu-1"].kill()
    held.release()
    await fleet.mqtt.field("eu-1/gateway/state", "state", "offline")
    fleet.gateways["eu-1"].start()
    await whole(fleet, "gate")
    await fleet.mqtt.field("eu-1/gateway/state", "state", "online")
    await fleet.mqtt.field("eu-1/tasks/gate/status", "executions", {"SUCCEEDED": 2})


async def test_a_task_goes_on_after_its_broker_was_killed_and_started_again(fleet: Federation) -> None:
    held = await started(fleet, "broker")
    await fleet.cut_broker()
    held.release()
    fleet.broker.start()
    view = await fleet.ended("broker")
    assert [one["round"] for one in view["history"]] == [1, 2, 3, 4]
    await fleet.all_online()


@pytest.mark.long
async def test_a_task_survives_the_death_of_everything_at_once(fleet: Federation) -> None:
    reference = await uninterrupted(fleet, "fedavg")
    held = await started(fleet, "storm")
    others = [member for member in fleet.members if member is not fleet.broker]
    for member in others:
        member.kill()
    held.release()
    for member in others:
        member.start()
    await fleet.all_online()
    await whole(fleet, "storm")
    assert greatest_difference(reference, await fleet.model("storm")) <= 1e-5
