"""Devices that are killed at an exact moment, held, doubled or all gone: what the federation makes of it."""

from __future__ import annotations

import asyncio
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import pytest_asyncio
from federation import Device, Federation
from gate import Held
from machines import until
from members import Member
from tensors_apart import greatest_difference

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(400)]

KEEPALIVE_S = 4
DEVICES = (
    Device("d1", options=("--keepalive", str(KEEPALIVE_S))),
    Device("d2", options=("--keepalive", str(KEEPALIVE_S))),
)
BROKER_S = 7.0
"""mosquitto 2.0 looks for clients that have gone silent every six seconds, and counts whole ones."""
BUSY = {"rounds": 2, "local_epochs": 400}
"""A round of a few seconds: long enough to be interrupted."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fleet(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Federation]:
    folder = tmp_path_factory.mktemp("days") / "fleet"
    async with Federation(folder, devices=DEVICES, gated=True) as started:
        yield started


def trained_by(view: dict[str, Any], number: int) -> dict[str, str]:
    """Return what became of each device's training in a round."""
    record = next(one for one in view["history"] if one["round"] == number)
    return {one["device"]: one["outcome"] for one in record["outcomes"] if one["phase"] == "train"}


def standing(fleet: Federation, device: str, task: str) -> tuple[object, object]:
    """Return round and phase of a device's execution."""
    execution = fleet.mqtt.latest.get(fleet.execution(device, task), {})
    return execution.get("round"), execution.get("phase")


async def killed(fleet: Federation, device: str, held: Held) -> None:
    """SIGKILL a device that stands at the gate, and see it go."""
    await held.arrived()
    died = time.monotonic()
    fleet.devices[device].kill()
    seen_s = await fleet.mqtt.field(f"{fleet.specs[device].path}/state", "state", "offline") - died
    assert seen_s < 5, f"{device} seen offline {seen_s:.1f} s after its death"


async def test_a_device_killed_before_pull_before_push_or_after_push_costs_nothing_but_time(
    fleet: Federation,
) -> None:
    d2 = fleet.devices["d2"]
    four = {"rounds": 4, "local_epochs": 5}
    await fleet.submit("calm", train=four)
    await fleet.ended("calm")
    before_pull = fleet.gate.hold(d2, "pull-messages", after="push-messages")
    await fleet.submit("killed", train=four)

    # Round 1: checked in, its message lies at the server and has not been asked for.
    round_topic = "central/tasks/killed/round"
    await fleet.mqtt.field(round_topic, "phase", "train")
    await killed(fleet, "d2", before_pull)
    d2.start()
    # Round 2: trained, nothing uploaded. The first upload of this process is round 1's.
    before_push = fleet.gate.hold(d2, "push-messages", count=2)
    await killed(fleet, "d2", before_push)
    view = await fleet.view("killed")
    assert [one["round"] for one in view["history"]] == [1]
    d2.start()
    # Round 3: all of it uploaded, and nothing said. The first upload is round 2's.
    unannounced = fleet.gate.hold(d2, "push-messages", count=2, answer=True)
    await killed(fleet, "d2", unannounced)
    await fleet.mqtt.until(lambda: fleet.mqtt.latest[round_topic]["replied"] == 1, "the other has replied")
    # Round 4: uploaded and said, and the device does not live to see the round's end.
    last = fleet.gate.hold(fleet.devices["d1"], "push-messages")
    d2.start()
    await fleet.mqtt.until(lambda: standing(fleet, "d2", "killed") == (4, "uploaded"), "d2 has uploaded")
    await last.arrived()
    d2.kill()
    last.release()

    view = await fleet.ended("killed")
    assert [trained_by(view, number) for number in (1, 2, 3, 4)] == [{"d1": "replied", "d2": "replied"}] * 4
    assert greatest_difference(await fleet.model("calm"), await fleet.model("killed")) == 0
    d2.start()
    await fleet.mqtt.field(fleet.execution("d2", "killed"), "state", "SUCCEEDED")
    said = d2.said().partition("task killed:")[2]
    trained = {number: said.count(f"round {number}: trained on") for number in (1, 2, 3, 4)}
    assert trained == {1: 1, 2: 1, 3: 1, 4: 1}, "what was trained once is not trained again"
    assert "round 2 was trained before: answered from the journal" in said


async def in_training(fleet: Federation, device: str, task: str) -> None:
    """Return once a device has reported a step of its training."""
    topic = f"{fleet.specs[device].path}/tasks/{task}/progress"
    await fleet.mqtt.until(lambda: topic in fleet.mqtt.latest, f"{device} trains")


async def waits_saying(fleet: Federation, task: str, words: str) -> str:
    """Return the last reason with `words` that the task's state topic gave, once there is one."""
    topic = f"central/tasks/{task}/state"

    def reasons() -> list[str]:
        said = (str(reason["message"]) for reason in fleet.mqtt.said(topic, "reason"))
        return [message for message in said if words in message]

    await fleet.mqtt.until(lambda: bool(reasons()), f"{topic}: {words}")
    return reasons()[-1]


@pytest.mark.long
async def test_a_stopped_device_is_gone_after_one_and_a_half_keepalives_and_comes_back(
    fleet: Federation,
) -> None:
    # The reply to the check-in passes, the update does not.
    held = fleet.gate.hold(fleet.devices["d2"], "push-messages", count=2)
    await fleet.submit("held", participants={"minimum": 2, "quorum": 0.5})
    await held.arrived()
    stopped = time.monotonic()
    fleet.devices["d2"].pause()
    seen_s = await fleet.mqtt.field(f"{fleet.specs['d2'].path}/state", "state", "offline") - stopped
    print(f"seen offline {seen_s:.2f} s after it was stopped")
    assert seen_s < 1.5 * KEEPALIVE_S + BROKER_S
    view = await fleet.rounds_done("held", 1)
    assert trained_by(view, 1) == {"d1": "replied", "d2": "lost"}
    reason = await waits_saying(fleet, "held", "round 2 waits for 2 members, 1 are here (eu-1/d1)")
    shown = await fleet.operator("task", "show", "held")
    assert reason in shown.out
    fleet.devices["d2"].resume()
    held.release()
    view = await fleet.ended("held")
    assert trained_by(view, 2) == {"d1": "replied", "d2": "replied"}
    assert fleet.mqtt.said(fleet.execution("d2", "held"), "attempt") == [1], "the same process goes on"
    assert view["reason"] is None


async def stopped_before_its_pull(fleet: Federation, task: str) -> None:
    held = fleet.gate.hold(fleet.devices["d2"], "pull-messages", after="push-messages")
    await fleet.submit(task, train=BUSY, participants={"minimum": 2, "quorum": 0.5})
    await held.arrived()
    fleet.devices["d2"].pause()
    held.release()


async def stopped_in_training(fleet: Federation, task: str) -> None:
    await fleet.submit(task, train=BUSY, participants={"minimum": 2, "quorum": 0.5})
    await in_training(fleet, "d2", task)
    fleet.devices["d2"].pause()


async def stopped_after_its_push(fleet: Federation, task: str) -> None:
    others = fleet.gate.hold(fleet.devices["d1"], "push-messages", count=2)
    await fleet.submit(task, train=BUSY, participants={"minimum": 2, "quorum": 0.5})
    await fleet.mqtt.until(lambda: standing(fleet, "d2", task) == (1, "uploaded"), "d2 has uploaded")
    await others.arrived()
    fleet.devices["d2"].pause()
    others.release()


@pytest.mark.long
@pytest.mark.parametrize(
    ("stopped", "lost_in"),
    [(stopped_before_its_pull, 1), (stopped_in_training, 1), (stopped_after_its_push, 2)],
)
async def test_a_round_goes_on_without_a_stopped_device_and_the_next_has_it_again(
    fleet: Federation, stopped: Callable[[Federation, str], Awaitable[None]], lost_in: int
) -> None:
    task = stopped.__name__.replace("_", "-")
    await stopped(fleet, task)
    stood = time.monotonic()
    seen_s = await fleet.mqtt.field(f"{fleet.specs['d2'].path}/state", "state", "offline") - stood
    assert seen_s < 1.5 * KEEPALIVE_S + BROKER_S
    view = await fleet.rounds_done(task, lost_in)
    outcomes = ["lost" if number == lost_in else "replied" for number in range(1, lost_in + 1)]
    assert [trained_by(view, number) for number in range(1, lost_in + 1)] == [
        {"d1": "replied", "d2": outcome} for outcome in outcomes
    ]
    fleet.devices["d2"].resume()
    view = await fleet.ended(task)
    assert [one["round"] for one in view["history"]] == [1, 2]
    if lost_in == 1:
        assert trained_by(view, 2) == {"d1": "replied", "d2": "replied"}
    await fleet.mqtt.field(fleet.execution("d2", task), "state", "SUCCEEDED")
    assert fleet.mqtt.said(fleet.execution("d2", task), "attempt") == [1], "the same process goes on"


async def test_a_task_whose_devices_are_all_lost_waits_says_so_and_fails_at_its_deadline(
    fleet: Federation,
) -> None:
    deadline_s = 20.0
    out = fleet.ground.logs / "watch.log"
    with out.open("wb") as log:
        watch = ("watch", "--broker", fleet.broker_url, "--keys", "keys")
        watching = fleet.ground.spawn(*watch, out=log.fileno(), err=log.fileno())
    await asyncio.to_thread(until, lambda: "server is online" in out.read_text(), "the watch has begun")
    await fleet.submit("alone", train={"local_epochs": 10_000}, participants={"deadline_s": deadline_s})
    for device in fleet.specs:
        await in_training(fleet, device, "alone")
    for device in fleet.devices.values():
        device.kill()
    reason = await waits_saying(fleet, "alone", "round 1: 2 of 2 devices are gone")
    gone = time.monotonic()
    await fleet.mqtt.once("central/tasks/alone/round", "lost", 2)
    view = await fleet.ended("alone", "failed", within_s=4 * deadline_s)
    # Once, not once for the round and once more for gathering.
    assert time.monotonic() - gone < deadline_s + 10
    failed = "round 1: waited 20 s for 2 members, 0 are here (none)"
    assert view["reason"]["message"] == failed
    told = f"alone: failed: {failed}"
    await asyncio.to_thread(until, lambda: told in out.read_text(), f"the watch says {told!r}")
    await asyncio.to_thread(terminated, watching)
    assert f"alone: running: {reason}" in out.read_text()
    for device in fleet.devices.values():
        device.start()
    for name in fleet.specs:
        await fleet.mqtt.field(fleet.execution(name, "alone"), "state", "FAILED")


def terminated(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    process.wait(60)


@pytest.mark.long
async def test_of_two_devices_with_one_name_the_elder_ends_and_the_younger_goes_on(fleet: Federation) -> None:
    elder = fleet.devices["d2"]
    younger = Member("device-d2-younger", fleet.ground, *elder.arguments, "--state", "younger")
    # The elder must still train when the younger is there, and what it has begun the younger does anew.
    await fleet.submit("twins", train=BUSY | {"local_epochs": 1200})
    await in_training(fleet, "d2", "twins")
    elder.wanted = False
    younger.start()
    assert await elder.ended(within_s=60) == 3
    assert "was started a second time" in elder.said().splitlines()[-1]
    third = await fleet.ground.command(*younger.arguments)
    assert (third.code, "in use" in third.err) == (2, True), "nor may two share a folder"
    view = await fleet.ended("twins")
    of_d2 = [one["outcome"] for one in view["history"][0]["outcomes"] if one["device"] == "d2"]
    assert of_d2 == ["lost", "replied"], "the younger takes the elder's place in the round"
    assert trained_by(view, 2) == {"d1": "replied", "d2": "replied"}
    assert await younger.stop() == 0
