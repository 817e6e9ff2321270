"""Devices that are killed in training, and tasks that are called off."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import time
from collections.abc import AsyncIterator
from typing import Any

import psutil
import pytest
import pytest_asyncio
from federation import Device, Federation
from gate import Held
from machines import until
from members import is_running

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(400)]

DEVICES = (Device("d1", "eu-1"), Device("d2", "eu-1"), Device("d3", "us-1"))
BUSY = {"rounds": 2, "local_epochs": 400}
"""A round of a few seconds: long enough to be interrupted."""
ENDLESS = {"rounds": 2, "local_epochs": 10_000}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fleet(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Federation]:
    folder = tmp_path_factory.mktemp("lost") / "fleet"
    async with Federation(folder, devices=DEVICES, gated=True) as started:
        yield started


def first_update(fleet: Federation, device: str) -> Held:
    """Hold a device's first update of the task that comes next: the reply to its check-in passes."""
    return fleet.gate.hold(fleet.devices[device], "push-messages", count=2)


async def in_training(fleet: Federation, device: str, task: str) -> None:
    """Return once a device has reported a step of its training."""
    topic = f"{fleet.specs[device].path}/tasks/{task}/progress"
    await fleet.mqtt.until(lambda: topic in fleet.mqtt.latest, f"{device} trains", within_s=120)


async def kill_in_training(fleet: Federation, device: str, task: str) -> float:
    """SIGKILL a device whose update is held, and return after how many seconds MQTT showed it offline."""
    await in_training(fleet, device, task)
    assert fleet.mqtt.latest[fleet.execution(device, task)]["phase"] == "training"
    killed = time.monotonic()
    fleet.devices[device].kill()
    return await fleet.mqtt.field(f"{fleet.specs[device].path}/state", "state", "offline") - killed


def outcomes(view: dict[str, Any], number: int) -> dict[str, str]:
    """Return what became of each device's training in a round."""
    record = next(one for one in view["history"] if one["round"] == number)
    return {one["device"]: one["outcome"] for one in record["outcomes"] if one["phase"] == "train"}


async def test_a_killed_device_is_seen_offline_and_left_out_and_takes_part_again_once_it_is_back(
    fleet: Federation,
) -> None:
    first_update(fleet, "d2")
    # The second round waits for all three: it cannot start before the killed one is back.
    await fleet.submit("lossy", train=BUSY, participants={"minimum": 3, "quorum": 0.5})
    offline_s = await kill_in_training(fleet, "d2", "lossy")
    print(f"seen offline {offline_s:.2f} s after its death")
    assert offline_s < 5
    view = await fleet.rounds_done("lossy", 1)
    assert outcomes(view, 1) == {"d1": "replied", "d2": "lost", "d3": "replied"}
    fleet.devices["d2"].start()
    view = await fleet.ended("lossy")
    assert outcomes(view, 2) == {"d1": "replied", "d2": "replied", "d3": "replied"}
    assert fleet.mqtt.said(fleet.execution("d2", "lossy"), "attempt") == [1, 2]


async def test_a_device_that_stands_by_takes_the_place_of_a_killed_one(fleet: Federation) -> None:
    updates = {device: first_update(fleet, device) for device in fleet.specs}
    await fleet.submit(
        "spare", train=BUSY | {"rounds": 1}, participants={"minimum": 2, "maximum": 2, "quorum": 1.0}
    )
    chosen = await chosen_of(fleet, "spare")
    spare = next(name for name in fleet.specs if name not in chosen)
    await fleet.mqtt.field(fleet.execution(spare, "spare"), "phase", "waiting")
    lost, other = sorted(chosen)
    for name in (other, spare):
        updates[name].release()
    assert await kill_in_training(fleet, lost, "spare") < 5
    view = await fleet.ended("spare")
    assert outcomes(view, 1) == {lost: "lost", other: "replied", spare: "replied"}
    assert (view["history"][0]["selected"], view["history"][0]["replied"]) == (2, 2)
    fleet.devices[lost].start()
    await fleet.all_online()


async def chosen_of(fleet: Federation, task: str) -> set[str]:
    """Return the two devices that train."""

    def training() -> set[str]:
        return {
            name
            for name in fleet.specs
            if "training" in fleet.mqtt.said(fleet.execution(name, task), "phase")
        }

    await fleet.mqtt.until(lambda: len(training()) == 2, "two devices train")
    return training()


async def test_cancel_stops_devices_within_a_batch(fleet: Federation) -> None:
    await fleet.submit("endless", train=ENDLESS)
    for device in fleet.specs:
        await in_training(fleet, device, "endless")
    called_off = time.monotonic()
    canceled = await fleet.operator("task", "cancel", "endless")
    assert canceled.code == 0, canceled
    told_s = time.monotonic() - called_off
    for device in fleet.specs:
        at = await fleet.mqtt.field(fleet.execution(device, "endless"), "state", "CANCELED")
        # They would train for a minute yet.
        assert at - called_off < told_s + 20, f"{device}: {at - called_off:.1f} s"
    view = await fleet.ended("endless", "canceled")
    assert view["revision"] == 2
    again = await fleet.operator("task", "cancel", "endless", "--json")
    assert again.code == 0, again
    assert json.loads(again.out)["task"] == "endless"
    # A canceled task stays so, and the fleet is free for the next.
    await fleet.submit("after", train={"rounds": 1})
    await fleet.ended("after")


async def test_a_task_that_is_called_off_leaves_the_one_that_runs_beside_it_and_the_one_behind_it_alone(
    fleet: Federation,
) -> None:
    update = first_update(fleet, "d3")
    await fleet.submit("east", regions=("eu-1",), train=ENDLESS)
    await fleet.submit("west", regions=("us-1",), train={"rounds": 4, "local_epochs": 100})
    # Issued within one second tasks are taken by name, and this one comes last by that, too.
    await fleet.submit("whole", train={"rounds": 2})
    for device, task in (("d1", "east"), ("d2", "east"), ("d3", "west")):
        await in_training(fleet, device, task)
    for device in fleet.specs:
        await fleet.mqtt.field(fleet.execution(device, "whole"), "state", "QUEUED")
    apps = {task: app_of(fleet, task) for task in ("east", "west")}
    assert (await fleet.operator("task", "cancel", "east")).code == 0
    await called_off(fleet, "east", "d1", "d2", region="eu-1")
    beside = await fleet.view("west")
    assert (beside["state"], beside["history"]) == ("running", []), "it is in its first round all the while"
    update.release()
    for task, devices in (("west", ["d3"]), ("whole", ["d1", "d2", "d3"])):
        view = await fleet.ended(task)
        assert view["revision"] == 1
        everybody = dict.fromkeys(devices, "replied")
        assert [outcomes(view, one["round"]) for one in view["history"]] == [everybody] * view["rounds"]
        for device in devices:
            await fleet.mqtt.field(fleet.execution(device, task), "state", "SUCCEEDED")
            assert fleet.mqtt.said(fleet.execution(device, task), "attempt") == [1]
    await gone(apps)


async def test_a_task_that_waits_for_its_turn_is_called_off_while_another_trains(fleet: Federation) -> None:
    update = first_update(fleet, "d1")
    await fleet.submit("kept", train={"rounds": 3, "local_epochs": 100})
    await in_training(fleet, "d1", "kept")
    await fleet.submit("queued", train={"rounds": 1})
    for device in fleet.specs:
        await fleet.mqtt.field(fleet.execution(device, "queued"), "state", "QUEUED")
    assert (await fleet.operator("task", "cancel", "queued")).code == 0
    await called_off(fleet, "queued", "d1", "d2", "d3", region="us-1")
    assert (await fleet.view("kept"))["history"] == [], "it is in its first round all the while"
    update.release()
    view = await fleet.ended("kept")
    everybody = dict.fromkeys(fleet.specs, "replied")
    assert [outcomes(view, number) for number in (1, 2, 3)] == [everybody] * 3
    for device in fleet.specs:
        assert fleet.mqtt.said(fleet.execution(device, "kept"), "attempt") == [1]
        assert "IN_PROGRESS" not in fleet.mqtt.said(fleet.execution(device, "queued"), "state")


async def called_off(fleet: Federation, task: str, *devices: str, region: str) -> None:
    """Return once server, gateway and devices all say that the task is canceled."""
    for device in devices:
        await fleet.mqtt.field(fleet.execution(device, task), "state", "CANCELED")
    assert (await fleet.ended(task, "canceled"))["revision"] == 2
    await fleet.mqtt.field(f"central/tasks/{task}/state", "state", "canceled")
    status = f"{region}/tasks/{task}/status"
    here = sum(fleet.specs[device].region == region for device in devices)
    await fleet.mqtt.field(status, "executions", {"CANCELED": here})
    await fleet.mqtt.field(status, "central", "canceled")


async def gone(apps: dict[str, psutil.Process], *, within_s: float = 90.0) -> None:
    """Return once the tasks' ServerApps have ended; a last call of Flower's may hold one for a while."""
    deadline = time.monotonic() + within_s
    while left := [task for task, app in apps.items() if is_running(app)]:
        assert time.monotonic() < deadline, f"apps of tasks that have ended still run: {left}"
        await asyncio.sleep(0.1)
    print(f"the apps had gone {within_s - deadline + time.monotonic():.1f} s after the last task's end")


def app_of(fleet: Federation, task: str) -> psutil.Process:
    """Return the ServerApp that runs the task at the server."""
    (pid,) = re.findall(rf"task={task} run=\d+ pid=(\d+): the app is there", fleet.server.said())
    return psutil.Process(int(pid))


async def test_task_run_says_that_its_task_was_called_off_and_exits_with_1(fleet: Federation) -> None:
    file = fleet.task("dropped", train=ENDLESS)
    more = ("--server", fleet.server_url, "--keys", "keys", "--broker", fleet.broker_url)
    out = fleet.ground.logs / "dropped.log"
    with out.open("wb") as log:
        running = fleet.ground.spawn("task", "run", file, *more, out=log.fileno(), err=log.fileno())
    await in_training(fleet, "d1", "dropped")
    assert (await fleet.operator("task", "cancel", "dropped")).code == 0
    await fleet.ended("dropped", "canceled")
    assert await asyncio.to_thread(running.wait, 60) == 1
    assert "canceled" in out.read_text().splitlines()[-1]
    for device in fleet.specs:
        await fleet.mqtt.field(fleet.execution(device, "dropped"), "state", "CANCELED")


async def test_ctrl_c_of_task_run_leaves_the_task_going(fleet: Federation) -> None:
    update = first_update(fleet, "d1")
    file = fleet.task("followed", train={"rounds": 1, "local_epochs": 100})
    more = ("--server", fleet.server_url, "--keys", "keys", "--broker", fleet.broker_url)
    out = fleet.ground.logs / "followed.log"
    with out.open("wb") as log:
        running = fleet.ground.spawn("task", "run", file, *more, out=log.fileno(), err=log.fileno())
    await in_training(fleet, "d1", "followed")
    await asyncio.to_thread(until, lambda: follows(out.read_text(), "followed"), "it is followed")
    running.send_signal(signal.SIGINT)
    assert await asyncio.to_thread(running.wait, 60) == 130
    assert "trellis task cancel followed" in out.read_text()
    update.release()
    await fleet.ended("followed")


def follows(said: str, task: str) -> bool:
    """Whether `task run` has begun to follow its task; a broker that is slow to answer is done without."""
    return f"{task}: running" in said or "no live view" in said


async def test_canceling_a_task_that_nobody_has_is_an_error_that_names_it(fleet: Federation) -> None:
    refused = await fleet.operator("task", "cancel", "nobodys")
    assert refused.code in (1, 2)
    assert "nobodys" in refused.err
    assert "Traceback" not in refused.err
