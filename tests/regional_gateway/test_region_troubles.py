# ruff: noqa: PLR0917 - fixtures are parameters, which pytest passes by name
"""What goes wrong with one task of a region that averages: it is told, waited out, and harms no other."""

from __future__ import annotations

import asyncio
import io
import threading
from pathlib import Path
from typing import Any

from rich.console import Console

from regional_gateway import api, tier
from regional_gateway.region_task import KEPT, RegionTask
from trellis.cli.watching.picture import Picture, fold
from trellis.cli.watching.rendering import render
from trellis.flower.backchannel import RoundRecord
from trellis.mqtt import BusMessage
from trellis.payloads import Execution, ExecutionState, Phase
from trellis.tier.history import append_round, read_rounds
from trellis.topics import DEFAULT_BASE as BASE
from trellis.topics import Topics

REGIONAL = {"aggregation": {"tier": "regional"}}
EXECUTION = "eu-1/gateway/tasks/{}/execution"


def shown(watcher: Any, task: str = "digits") -> Execution | None:
    payload = watcher.retained.get(EXECUTION.format(task))
    return Execution.parse(payload) if payload else None


def waits(watcher: Any, task: str = "digits") -> bool:
    said = shown(watcher, task)
    return said is not None and (said.state, said.phase) == (ExecutionState.IN_PROGRESS, Phase.WAITING)


def checked_in(watcher: Any, task: str) -> bool:
    said = shown(watcher, task)
    return said is not None and said.flower is not None and said.flower.nonce is not None


def reason(watcher: Any) -> tuple[str, str]:
    said = shown(watcher)
    return (said.reason.code, said.reason.message) if said is not None and said.reason else ("", "")


async def test_for_whom_a_region_waits_shows_on_its_execution_until_it_goes_on(
    world: Any, watching: Any, wait_until: Any, operator: Any, say: Any
) -> None:
    world.script = ["waits"]
    async with world.gateway(front=True) as running, watching(world.region) as seen:
        await running.post(operator.envelope(**REGIONAL))
        await wait_until(lambda: reason(seen) == ("waiting", "1 of 2 is here"))
        view = (await running.http.get("/v1/tasks/digits")).json()
        assert view["execution"]["reason"]["message"] == "1 of 2 is here"
        await seen.publish("central/tasks/digits/round", say.round(1))
        await wait_until(lambda: reason(seen) == ("", ""))
        await wait_until(lambda: (said := shown(seen)) and said.phase is Phase.UPLOADED)


async def test_while_its_superlink_is_started_again_a_region_is_not_said_to_train(
    world: Any, watching: Any, wait_until: Any, operator: Any, say: Any
) -> None:
    world.script = ["trains", "answers"]
    async with world.gateway(front=True) as running, watching(world.region) as seen:
        await running.post(operator.envelope(**REGIONAL))
        await seen.publish("central/tasks/digits/round", say.round(1))
        await wait_until(lambda: (said := shown(seen)) and said.phase is Phase.TRAINING)
        world.superlinks[0].clears_up = cleared = asyncio.Event()
        world.superlinks[0].died.set()
        await wait_until(lambda: reason(seen)[0] == "recovering")
        health = api._health(running.gateway)
        assert (health.status, health.superlink) == ("degraded", "down")
        assert reason(seen)[1] == "the SuperLink ended: another app is started, and goes on"
        said = shown(seen)
        assert said is not None
        assert (said.state, said.phase, said.round) == (ExecutionState.IN_PROGRESS, Phase.CONNECTING, 1)
        console = Console(record=True, width=160, file=io.StringIO())
        picture = Picture()
        for topic, payload in seen.heard:
            picture = fold(picture, BusMessage(f"{BASE}/{topic}", payload, retain=True), Topics(BASE))
        console.print(render(picture))
        assert "eu-1  connecting  the SuperLink ended: another app" in console.export_text()
        cleared.set()
        await wait_until(lambda: (said := shown(seen)) and said.phase is Phase.UPLOADED)
        assert reason(seen) == ("", "")


async def test_a_disk_that_takes_nothing_does_not_silence_the_region(
    world: Any, watching: Any, wait_until: Any, operator: Any
) -> None:
    world.script = ["answers"]
    folder: Path = world.folder / "eu-1/tasks/digits"
    folder.parent.mkdir(parents=True)
    folder.write_text("stands where the task's folder belongs")
    async with world.gateway(front=True) as running, watching(world.region) as seen:
        await running.post(operator.envelope(**REGIONAL))
        await wait_until(lambda: reason(seen)[0] == "disk")
        assert "free space there" in reason(seen)[1]
        folder.unlink()
        await wait_until(lambda: waits(seen))


async def test_a_task_whose_history_cannot_be_read_is_looked_at_again_and_the_others_go_on(
    world: Any, watching: Any, wait_until: Any, operator: Any, caplog: Any
) -> None:
    world.script = ["answers", "answers"]
    rounds: Path = world.folder / "eu-1/tasks/digits/r1/rounds.jsonl"
    rounds.parent.mkdir(parents=True)
    rounds.symlink_to("/proc/self/mem")  # a file that no read gets anything from
    async with world.gateway(front=True) as running, watching(world.region) as seen:
        await running.post(operator.envelope(**REGIONAL))
        await wait_until(lambda: "task=digits: is looked at again" in caplog.text)
        await running.post(operator.envelope(task="other", **REGIONAL))
        await wait_until(lambda: waits(seen, "other"))
        rounds.unlink()
        await wait_until(lambda: waits(seen))


async def test_a_fault_while_a_regions_task_is_driven_ends_that_task_alone_for_good(
    world: Any, watching: Any, wait_until: Any, operator: Any, monkeypatch: Any
) -> None:
    broken = asyncio.Event()
    follow_fleet = tier.follow_fleet

    async def fails(bus: Any, topics: Any, fleet: Any) -> None:
        if fleet.task == "digits":
            await broken.wait()
            raise RuntimeError("a\nbug")
        await follow_fleet(bus, topics, fleet)

    def has_failed(seen: Any) -> bool:
        return (said := shown(seen)) is not None and said.state is ExecutionState.FAILED

    monkeypatch.setattr(tier, "follow_fleet", fails)
    world.script = ["trains", "answers"]
    async with watching(world.region) as seen:
        async with world.gateway(front=True) as running:
            await running.post(operator.envelope(**REGIONAL))
            await wait_until(lambda: waits(seen))
            app = running.gateway.tier.find("digits").runs.app
            await running.post(operator.envelope(task="other", **REGIONAL))
            await wait_until(lambda: waits(seen, "other"))
            broken.set()
            await wait_until(lambda: has_failed(seen))
            why = "a fault of the gateway's own, see its log: RuntimeError: a bug"
            assert reason(seen) == ("internal", why)
            await wait_until(lambda: not app.alive)
            assert waits(seen, "other")
        world.script = ["answers"]
        async with world.gateway(front=True) as running:
            await wait_until(lambda: {"digits", "other"} <= running.gateway.tier._tasks.keys())
            await wait_until(lambda: running.gateway.tier.find("other").runs.app)
            assert running.gateway.tier.find("digits").ended
            assert len(world.superlinks[-1].runs) == 1  # the other's
            assert reason(seen) == ("internal", why)


async def test_a_fault_before_a_regions_task_begins_ends_that_task_alone(
    world: Any, watching: Any, wait_until: Any, operator: Any, monkeypatch: Any
) -> None:
    class Broken(RegionTask):
        def __init__(self, descriptor: Any, **parts: Any) -> None:
            if descriptor.task == "digits":
                raise RuntimeError("a bug")
            super().__init__(descriptor, **parts)

    monkeypatch.setattr(tier, "RegionTask", Broken)
    world.script = ["answers"]
    async with world.gateway(front=True) as running, watching(world.region) as seen:
        await running.post(operator.envelope(**REGIONAL))
        await wait_until(lambda: reason(seen)[0] == "internal")
        said = shown(seen)
        assert said is not None
        assert (said.state, said.revision) == (ExecutionState.FAILED, 1)
        await running.post(operator.envelope(task="other", **REGIONAL))
        await wait_until(lambda: waits(seen, "other"))


async def test_a_neighbours_trouble_while_a_regions_task_is_driven_is_waited_out(
    world: Any, watching: Any, wait_until: Any, operator: Any, monkeypatch: Any, caplog: Any
) -> None:
    follow_fleet, failed = tier.follow_fleet, asyncio.Event()

    async def fails_once(bus: Any, topics: Any, fleet: Any) -> None:
        if not failed.is_set():
            failed.set()
            raise OSError("no such device")
        await follow_fleet(bus, topics, fleet)

    monkeypatch.setattr(tier, "follow_fleet", fails_once)
    world.script = ["answers"] * 2
    async with world.gateway(front=True) as running, watching(world.region) as seen:
        await running.post(operator.envelope(**REGIONAL))
        await wait_until(lambda: "looked at again in a moment: OSError: no such device" in caplog.text)
        await wait_until(lambda: waits(seen))


async def test_a_superlinks_trouble_is_told_of_a_task_that_is_just_removed_without_harm(
    world: Any, watching: Any, wait_until: Any, operator: Any
) -> None:
    world.script = ["answers", "answers"]
    async with world.gateway(front=True) as running, watching(world.region) as seen:
        own = running.gateway.tier
        await running.post(operator.envelope(**REGIONAL))
        await running.post(operator.envelope(task="other", **REGIONAL))
        # Its app's check-in is the last that is said of it; one after the trouble would take the reason away.
        await wait_until(lambda: waits(seen) and checked_in(seen, "other"))
        task = own._tasks.pop("digits")  # as while it is retired
        await own._tell("no room")
        own._tasks["digits"] = task
        await wait_until(
            lambda: (said := shown(seen, "other")) and said.reason and said.reason.message == "no room"
        )


async def test_a_region_whose_devices_do_another_task_first_is_queued_like_them(
    world: Any, watching: Any, wait_until: Any, operator: Any, say: Any
) -> None:
    world.script = ["answers"]
    async with world.gateway(front=True) as running, watching(world.region) as seen:

        async def says(device: str, state: ExecutionState, version: int) -> None:
            payload = say.execution(state, version, revision=1)
            await seen.publish(f"eu-1/devices/{device}/tasks/digits/execution", payload)

        def region_is(state: ExecutionState) -> bool:
            said = shown(seen)
            return said is not None and said.state is state and said.flower is not None

        for device in ("cam-1", "cam-2"):
            await seen.publish(f"eu-1/devices/{device}/state", say.online())
            await says(device, ExecutionState.QUEUED, 1)
        await running.post(operator.envelope(participants={"minimum": 2}, **REGIONAL))
        await wait_until(lambda: region_is(ExecutionState.QUEUED))
        await says("cam-1", ExecutionState.IN_PROGRESS, 2)
        await wait_until(lambda: running.gateway.has_begun("digits", 1))
        assert region_is(ExecutionState.QUEUED)
        await says("cam-2", ExecutionState.IN_PROGRESS, 2)
        await wait_until(lambda: region_is(ExecutionState.IN_PROGRESS))
        await says("cam-2", ExecutionState.QUEUED, 3)  # it comes back, in the middle of the task
        await seen.publish("central/tasks/digits/round", say.round(1))
        await wait_until(lambda: (said := shown(seen)) and said.phase is Phase.UPLOADED)
        assert region_is(ExecutionState.IN_PROGRESS)


async def test_a_task_that_takes_long_to_look_at_holds_up_no_other(
    world: Any, watching: Any, wait_until: Any, operator: Any, monkeypatch: Any
) -> None:
    world.script = ["answers", "answers"]
    goes_on = threading.Event()

    def read(path: Path) -> list[RoundRecord]:
        if path.parts[-3] == "digits":
            goes_on.wait(100)
        return read_rounds(path)

    monkeypatch.setattr("regional_gateway.tier.read_rounds", read)
    async with world.gateway(front=True) as running, watching(world.region) as seen:
        await running.post(operator.envelope(**REGIONAL))
        await running.post(operator.envelope(task="other", **REGIONAL))
        await wait_until(lambda: waits(seen, "other"))
        assert shown(seen) is None
        goes_on.set()
        await wait_until(lambda: waits(seen))


async def test_of_a_long_history_the_last_rounds_stay_in_memory(
    world: Any, watching: Any, wait_until: Any, operator: Any, say: Any
) -> None:
    world.script = ["answers"]
    folder: Path = world.folder / "eu-1/tasks/digits/r1"
    folder.mkdir(parents=True)
    for number in range(2, 2 * KEPT + 1):
        record = RoundRecord(round=number, loss=0.5, selected=1, replied=1, duration_s=0.01)
        append_round(folder / "rounds.jsonl", record)
    async with world.gateway(front=True) as running, watching(world.region) as seen:
        await running.post(operator.envelope(**REGIONAL))
        await wait_until(lambda: waits(seen))
        view = (await running.http.get("/v1/tasks/digits")).json()
        assert [one["round"] for one in view["history"]] == list(range(KEPT + 1, 2 * KEPT + 1))
