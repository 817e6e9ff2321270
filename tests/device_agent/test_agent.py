# ruff: noqa: PLR0917 - fixtures are parameters, which pytest passes by name
from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from artefact_fronts import OneFile
from graph_files import TINY
from held_clock import HeldClock

import device_agent.agent
import device_agent.desk
from device_agent.agent import DeviceAgent
from device_agent.eligibility import Seen
from device_agent.participation import Device
from device_agent.presence import Self, describe
from models.backends import open_backend
from trellis import task_log
from trellis.artefacts.offer import NotYet, Offer
from trellis.artefacts.serving import create_artefact_app
from trellis.envelope import Envelope
from trellis.errors import ConfigError, Displaced
from trellis.http.server import HttpServer
from trellis.mqtt import MemoryBroker
from trellis.payloads import (
    Execution,
    ExecutionState,
    Info,
    Log,
    Phase,
    Presence,
    State,
    TaskState,
    TaskStatus,
)
from trellis.signing_key import SigningKey
from trellis.tier.door import Front

BASE = "trellis/v1/eu-1"
OWN = f"{BASE}/devices/cam-7"


def demands(**changes: Any) -> dict[str, Any]:
    """What `make_task` asks of a device's data, changed."""
    return {"name": "blobs", "shape": [4], "classes": 3, "min_samples": 10} | changes


class Fleet:
    """The region's MQTT client in a test: posts as the gateway does, and reads what the device says."""

    def __init__(self, broker: MemoryBroker) -> None:
        self.broker = broker
        self.said: dict[str, list[bytes]] = {}
        self.bus: Any = None

    async def post(self, task: str, envelope: bytes) -> None:
        await self.bus.publish(f"{BASE}/tasks/{task}/descriptor", envelope, retain=True)

    async def status(self, task: str, central: TaskState, revision: int = 1) -> None:
        status = TaskStatus(task=task, revision=revision, desired="run", central=central)
        await self.bus.publish(f"{BASE}/tasks/{task}/status", status.to_bytes(), retain=True)

    def executions(self, task: str) -> list[Execution]:
        said = self.said.get(f"{OWN}/tasks/{task}/execution", [])
        return [Execution.parse(payload) for payload in said if payload]

    def states(self) -> list[State]:
        return [State.parse(payload) for payload in self.said.get(f"{OWN}/state", [])]

    def logs(self, task: str) -> list[Log]:
        return [Log.parse(payload) for payload in self.said.get(f"{OWN}/tasks/{task}/log", [])]

    async def until(self, due: Callable[[], Any], timeout_s: float = 60.0) -> Any:
        deadline = time.monotonic() + timeout_s
        while not (found := due()):
            assert time.monotonic() < deadline, f"it did not come about: {self.said}"
            await asyncio.sleep(0.01)
        return found

    async def execution(self, task: str, due: Callable[[Execution], Any]) -> Execution:
        found: Execution = await self.until(lambda: next(filter(due, self.executions(task)), None))
        return found

    async def state(self, task: str, state: ExecutionState) -> Execution:
        return await self.execution(task, lambda execution: execution.state is state)


@pytest.fixture
async def fleet() -> AsyncIterator[Fleet]:
    fleet = Fleet(MemoryBroker())

    async def read(messages: AsyncIterator[Any]) -> None:
        async for message in messages:
            fleet.said.setdefault(message.topic, []).append(message.payload)

    async with fleet.broker.bus("gateway") as fleet.bus, fleet.bus.subscribe("trellis/v1/#") as messages:
        await fleet.bus.wait_connected(5)
        reading = asyncio.create_task(read(messages))
        yield fleet
        reading.cancel()


def self_of(device: Device) -> Self:
    return Self(
        device.settings, describe(device.data, ("torch",), "torch"), device.journal.next_boot(), since=1
    )


@asynccontextmanager
async def running(device: Device, broker: MemoryBroker) -> AsyncIterator[asyncio.Task[None]]:
    this = self_of(device)
    stop = asyncio.Event()
    agent = DeviceAgent(device, this, lambda *, will, birth: broker.bus(this.boot_id, will=will, birth=birth))
    task = asyncio.create_task(agent.run(stop))
    try:
        yield task
    finally:
        stop.set()
        await asyncio.wait([task], timeout=40)
        assert task.done()


async def test_birth_says_what_the_device_is_and_goodbye_that_it_left(device, fleet):
    async with running(device, fleet.broker):
        await fleet.until(lambda: f"{OWN}/info" in fleet.said)
        info = Info.parse(fleet.said[f"{OWN}/info"][0])
        assert (info.data.name, info.data.samples, info.data.shape, info.data.classes) == (
            "blobs",
            64,
            (4,),
            3,
        )
        assert info.backends == ("torch",)
    states = fleet.states()
    assert [state.state for state in states] == [Presence.ONLINE, Presence.OFFLINE]
    assert list(fleet.said)[:2] == [f"{OWN}/info", f"{OWN}/state"]  # who hears of it finds what it is
    assert states[0].boot_id == states[1].boot_id


async def test_a_lost_connection_fires_the_will_and_the_birth_follows(device, fleet):
    async with running(device, fleet.broker):
        boot_id = (await fleet.until(fleet.states))[0].boot_id
        fleet.broker.cut(boot_id)
        await fleet.until(lambda: len(fleet.states()) >= 3)
        last = fleet.states()[-1]
        assert (last.state, last.boot_id) == (Presence.ONLINE, boot_id)


async def test_an_old_will_is_answered_with_the_birth(device, fleet):
    async with running(device, fleet.broker):
        boot_id = (await fleet.until(fleet.states))[0].boot_id
        old = State(state=Presence.OFFLINE, boot_id="00000000000001-x", since=1)
        await fleet.bus.publish(f"{OWN}/state", old.to_bytes(), retain=True)
        await fleet.until(lambda: fleet.states()[-1].boot_id == boot_id)
        assert fleet.states()[-1].state is Presence.ONLINE


async def test_a_will_of_this_boot_that_comes_late_is_answered_with_the_birth(device, fleet):
    async with running(device, fleet.broker):
        boot_id = (await fleet.until(fleet.states))[0].boot_id
        will = State(state=Presence.OFFLINE, boot_id=boot_id, since=1)
        await fleet.bus.publish(f"{OWN}/state", will.to_bytes(), retain=True)
        await fleet.until(lambda: [state.state for state in fleet.states()][1:] == ["offline", "online"])


async def test_the_elder_of_two_with_one_name_ends_and_says_so(device, fleet):
    async with running(device, fleet.broker) as elder:
        await fleet.until(fleet.states)
        younger = State(state=Presence.ONLINE, boot_id="99999999999999-x", since=1)
        await fleet.bus.publish(f"{OWN}/state", younger.to_bytes(), retain=True)
        await asyncio.wait([elder], timeout=40)
        with pytest.raises(ExceptionGroup) as group:
            elder.result()
        error = group.value.exceptions[0]
        assert isinstance(error, Displaced)
        assert error.exit_code == 3
        assert "device 'cam-7' of region 'eu-1': was started a second time" in str(error)
    assert fleet.states()[-1].boot_id == "99999999999999-x"  # the elder's goodbye would hide the younger


async def test_a_broker_that_is_not_there_ends_the_device_with_code_2(device, fleet, monkeypatch):
    monkeypatch.setattr(device_agent.agent, "CONNECT_S", 0.2)
    fleet.broker.stop()
    async with running(device, fleet.broker) as agent:
        with pytest.raises(ConfigError, match="trellis broker"):
            await agent


async def test_a_posted_task_runs_to_its_end(device, fleet, flower, make_task, signed):
    query = flower.send("query", {"task": "blobs", "nonce": "n1"})
    async with running(device, fleet.broker):
        await fleet.post("blobs", signed(make_task()))
        await asyncio.to_thread(flower.reply, query)
        await fleet.status("blobs", TaskState.RUNNING)
        await fleet.status("blobs", TaskState.SUCCEEDED)
        await fleet.state("blobs", ExecutionState.SUCCEEDED)
    assert flower.deactivated == [True]
    versions = [execution.version for execution in fleet.executions("blobs")]
    assert versions == sorted(set(versions))
    assert device.journal.seen("blobs").revision == 1


async def test_an_announced_round_wakes_the_device(device, fleet, flower, make_task, signed):
    async with running(device, fleet.broker):
        await fleet.post("blobs", signed(make_task()))
        await fleet.until(lambda: flower.pulls)
        query = flower.send("query", {"task": "blobs", "nonce": "n1"})
        round_ = b'{"schema":1,"ts":1,"round":1,"rounds":3,"phase":"train","announced":1}'
        await fleet.bus.publish(f"{BASE}/tasks/blobs/round", round_, retain=True)
        await asyncio.to_thread(flower.reply, query)  # within half of `Pace.idle_s`


async def test_a_status_of_an_earlier_revision_ends_nothing(device, fleet, flower, make_task, signed):
    await fleet.status("blobs", TaskState.FAILED, revision=1)
    async with running(device, fleet.broker):
        await fleet.post("blobs", signed(make_task(revision=2)))
        await fleet.execution("blobs", lambda e: e.phase is Phase.WAITING)
        await fleet.status("blobs", TaskState.FAILED, revision=2)
        execution = await fleet.state("blobs", ExecutionState.FAILED)
        assert execution.reason.message == "the server's task has failed"


async def test_a_front_that_a_gateway_hints_at_is_followed_also_when_it_moves(
    device, fleet, flower, make_task, signed
):
    made: list[str] = []

    def make_link(address: str, folder: Path) -> Any:
        made.append(address)
        return device.make_link(device.settings.servers[0], folder)

    fronts = ("127.0.0.1:8100", "127.0.0.1:8200")
    settings = replace(device.settings, servers=(*device.settings.servers, *fronts))
    envelope = Envelope.parse(signed(make_task(aggregation={"tier": "regional"})))
    async with running(replace(device, settings=settings, make_link=make_link), fleet.broker):
        await fleet.post("blobs", envelope.to_bytes())
        rejected = await fleet.state("blobs", ExecutionState.REJECTED)
        assert "does not say where" in rejected.reason.message
        for front in fronts:
            await fleet.post("blobs", envelope.with_hints(front=front).to_bytes())
            await fleet.until(lambda front=front: made[-1:] == [front])
            await fleet.until(lambda: fleet.executions("blobs")[-1].phase is Phase.WAITING)
        await fleet.post("blobs", envelope.with_hints(front="10.9.9.9:1").to_bytes())
        await fleet.execution("blobs", lambda e: e.reason and "hint at front 10.9.9.9:1" in e.reason.message)
    assert made == list(fronts)
    assert fleet.executions("blobs")[-1].state is ExecutionState.REJECTED


class Waiting:
    """A front that has no artefact yet, and says who asked."""

    def __init__(self) -> None:
        self.asked = 0

    async def offer(self, task: str, runtime: str) -> Offer:
        self.asked += 1
        raise NotYet("the server is exporting softmax", again_s=30.0)

    def file(self, sha256: str) -> Path | None:
        raise NotImplementedError


async def test_a_cache_that_moves_is_asked_by_a_device_that_waits_for_its_artefact(
    device, fleet, make_task, signed
):
    sources = [Waiting(), Waiting()]
    async with AsyncExitStack() as stack:
        fronts = [
            await stack.enter_async_context(
                HttpServer(Front(create_artefact_app(one)), host="127.0.0.1", port=0, tls=None)
            )
            for one in sources
        ]
        caches = [f"127.0.0.1:{one.port}" for one in fronts]
        servers = (*device.settings.servers, *caches)
        settings = replace(device.settings, servers=servers, backend="onnx")
        envelope = Envelope.parse(signed(make_task()))
        async with running(replace(device, settings=settings), fleet.broker):
            for number, cache in enumerate(caches):
                await fleet.post("blobs", envelope.with_hints(artefacts=cache).to_bytes())
                await fleet.until(lambda number=number: sources[number].asked)
            await fleet.until(lambda: fleet.executions("blobs")[-1].phase is Phase.FETCHING)


@pytest.mark.parametrize("backend", ["torch", "onnx"])
async def test_a_cache_that_moves_disturbs_no_device_that_has_what_it_trains_from(
    tmp_path, content, device, tiny_device, fleet, make_task, signed, backend
):
    trains, task = (tiny_device, make_task(**TINY)) if backend == "onnx" else (device, make_task())
    envelope = Envelope.parse(signed(task))
    app = create_artefact_app(OneFile(tmp_path / "above", content))
    async with HttpServer(Front(app), host="127.0.0.1", port=0, tls=None) as front:
        caches = (f"127.0.0.1:{front.port}", "127.0.0.1:1")
        settings = replace(trains.settings, servers=(*trains.settings.servers, *caches))
        async with running(replace(trains, settings=settings), fleet.broker):
            await fleet.post("blobs", envelope.with_hints(artefacts=caches[0]).to_bytes())
            await fleet.execution("blobs", lambda e: e.phase is Phase.WAITING)
            said = len(fleet.executions("blobs"))
            await fleet.post("blobs", envelope.with_hints(artefacts=caches[1]).to_bytes())
            await fleet.until(lambda: len(fleet.executions("blobs")) > said)
    assert [one.state for one in fleet.executions("blobs")].count(ExecutionState.QUEUED) == 1


@pytest.mark.parametrize(
    ("changes", "code", "said"),
    [
        ({"server": {"address": "10.9.9.9:8000", "tls": False}}, "server", "this device's list is"),
        ({"model": {"name": "lenet"}}, "model", "did you mean 'lenet5'?"),
        ({"data": demands(name="cats")}, "data", "data.name: holds 'blobs', the task wants 'cats'"),
        ({"data": demands(shape=[5])}, "data", "data.shape: samples have shape (4,), the task wants (5,)"),
        ({"data": demands(classes=2)}, "data", "data.classes: labels run from 0 to 2, the task wants 0 to 1"),
        ({"data": demands(min_samples=65)}, "data", "holds 64 samples, the task wants at least 65"),
        ({"regions": ["us-1"]}, "region", "this device is in region 'eu-1'"),
        (
            {"expires_at": "2026-01-02T00:00:00Z", "issued_at": "2026-01-01T00:00:00Z"},
            "expired",
            "expired 2026-01-02T00:00:00+00:00",
        ),
    ],
)
async def test_a_task_that_the_device_cannot_take_is_rejected_and_the_others_go_on(
    device, fleet, flower, make_task, signed, caplog, changes, code, said
):
    async with running(device, fleet.broker):
        await fleet.post("bad", signed(make_task(task="bad", **changes)))
        await fleet.post("blobs", signed(make_task()))
        execution = await fleet.state("bad", ExecutionState.REJECTED)
        assert execution.reason.code == code
        assert said in execution.reason.message
        await fleet.execution("blobs", lambda e: e.phase is Phase.WAITING)
        log = (await fleet.until(lambda: fleet.logs("bad")))[0]
        assert log.level == "ERROR"
        assert execution.reason.message in log.message
    # Who stands before the device reads it, too.
    assert [line for line in caplog.messages if execution.reason.message in line and "bad" in line]


async def test_data_that_are_not_finite_are_rejected_with_the_first_that_is_not(
    device, fleet, make_task, signed, blobs
):
    x = blobs.x.copy()
    x[[7, 9], 2] = np.nan
    async with running(replace(device, data=replace(blobs, x=x)), fleet.broker):
        await fleet.post("blobs", signed(make_task()))
        rejected = await fleet.state("blobs", ExecutionState.REJECTED)
    assert rejected.reason.code == "data"
    assert "2 samples hold NaN or infinity, the first is number 7" in rejected.reason.message


async def test_a_device_without_its_training_runtime_rejects_and_names_the_extra(
    device, fleet, make_task, signed, monkeypatch
):
    monkeypatch.setitem(sys.modules, "torch", None)  # as find_spec sees one that is not installed
    async with running(device, fleet.broker):
        await fleet.post("blobs", signed(make_task()))
        rejected = await fleet.state("blobs", ExecutionState.REJECTED)
    assert rejected.reason.code == "extra"
    assert "pip install 'trellis-fl[torch]'" in rejected.reason.message


async def test_a_strangers_task_is_rejected_and_cannot_end_a_believed_one(
    device, fleet, flower, make_task, signed
):
    stranger = SigningKey.generate()
    async with running(device, fleet.broker):
        await fleet.post("blobs", signed(make_task(), stranger))
        rejected = await fleet.state("blobs", ExecutionState.REJECTED)
        assert rejected.reason.code == "untrusted"
        assert device.journal.seen("blobs") is None
        await fleet.post("blobs", signed(make_task()))
        await fleet.execution("blobs", lambda e: e.phase is Phase.WAITING)
        for payload in (signed(make_task(revision=9, desired="canceled"), stranger), b"{}", b"\xff"):
            await fleet.post("blobs", payload)
        await fleet.until(lambda: len([log for log in fleet.logs("blobs") if "refused" in log.message]) == 3)
        assert fleet.executions("blobs")[-1].state is ExecutionState.IN_PROGRESS


async def test_tasks_take_turns_in_the_order_of_their_posting(device, fleet, flower, make_task, signed):
    def issued(minutes: int) -> str:
        return (datetime.now(UTC) - timedelta(minutes=minutes)).isoformat()

    async with running(device, fleet.broker):
        await fleet.post("first", signed(make_task(task="first", issued_at=issued(9))))
        await fleet.execution("first", lambda e: e.phase is Phase.WAITING)
        await fleet.post("third", signed(make_task(task="third", issued_at=issued(3))))
        await fleet.post("second", signed(make_task(task="second", issued_at=issued(5))))
        await fleet.state("second", ExecutionState.QUEUED)
        await fleet.state("third", ExecutionState.QUEUED)
        await fleet.status("first", TaskState.SUCCEEDED)
        await fleet.execution("second", lambda e: e.phase is Phase.WAITING)
        assert [e.state for e in fleet.executions("third")] == [ExecutionState.QUEUED]
        await fleet.status("third", TaskState.CANCELED)
        assert (await fleet.state("third", ExecutionState.CANCELED)).phase is None


async def test_a_signed_cancellation_ends_the_task_and_its_replay_cannot_start_it(
    device, fleet, flower, make_task, signed
):
    task = make_task()
    async with running(device, fleet.broker):
        await fleet.post("blobs", signed(task))
        await fleet.execution("blobs", lambda e: e.phase is Phase.WAITING)
        await fleet.post("blobs", signed(task.canceled()))
        execution = await fleet.state("blobs", ExecutionState.CANCELED)
        assert (execution.revision, execution.reason.code) == (2, "canceled")
        await fleet.post("blobs", signed(task))
        await fleet.until(lambda: [log for log in fleet.logs("blobs") if "has seen 2" in log.message])
        assert fleet.executions("blobs")[-1].state is ExecutionState.CANCELED


async def test_a_device_that_was_away_hears_of_the_cancellation(device, fleet, make_task, signed):
    await fleet.post("blobs", signed(make_task().canceled()))
    async with running(device, fleet.broker):
        assert (await fleet.state("blobs", ExecutionState.CANCELED)).revision == 2


async def test_a_cleared_descriptor_cancels_and_then_clears_the_execution(
    device, fleet, flower, make_task, signed
):
    async with running(device, fleet.broker):
        await fleet.post("blobs", signed(make_task()))
        await fleet.execution("blobs", lambda e: e.phase is Phase.WAITING)
        await fleet.post("blobs", b"")
        assert (await fleet.state("blobs", ExecutionState.CANCELED)).reason.code == "removed"
        await fleet.until(lambda: fleet.said[f"{OWN}/tasks/blobs/execution"][-1] == b"")


async def test_a_task_that_ends_after_its_descriptor_was_cleared_leaves_no_execution(
    device, fleet, flower, make_task, signed
):
    device = replace(device, pace=replace(device.pace, idle_s=0.1))
    ending, cleared = threading.Event(), threading.Event()

    def push_late(_: str) -> None:
        ending.set()
        assert cleared.wait(20)

    flower.pushing = push_late
    flower.send("query", {"task": "blobs", "nonce": "n1"})
    async with running(device, fleet.broker):
        await fleet.post("blobs", signed(make_task()))
        await asyncio.to_thread(ending.wait, 20)
        await fleet.status("blobs", TaskState.SUCCEEDED)
        await fleet.post("blobs", b"")
        await fleet.bus.publish(f"{BASE}/tasks/other/descriptor", b"{}", retain=True)
        await fleet.until(lambda: fleet.executions("other"))  # so it has heard what came before
        cleared.set()
        await fleet.state("blobs", ExecutionState.SUCCEEDED)
        await fleet.until(lambda: fleet.said[f"{OWN}/tasks/blobs/execution"][-1] == b"")


async def test_a_task_that_was_removed_while_it_waited_for_its_turn_is_canceled_and_cleared(
    device, fleet, flower, make_task, signed
):
    async with running(device, fleet.broker):
        await fleet.post("first", signed(make_task(task="first")))
        await fleet.execution("first", lambda e: e.phase is Phase.WAITING)
        await fleet.post("second", signed(make_task(task="second")))
        await fleet.state("second", ExecutionState.QUEUED)
        await fleet.post("second", b"")
        assert (await fleet.state("second", ExecutionState.CANCELED)).reason.code == "removed"
        await fleet.until(lambda: fleet.said[f"{OWN}/tasks/second/execution"][-1] == b"")
        assert fleet.executions("first")[-1].state is ExecutionState.IN_PROGRESS


async def test_a_task_that_was_removed_while_the_device_was_away_is_cleared_at_its_start(
    device, fleet, flower, make_task, signed, monkeypatch
):
    monkeypatch.setattr(device_agent.desk, "SETTLED_S", 1.0)
    tasks = ("removed", "kept")
    async with running(device, fleet.broker):
        for task in tasks:
            await fleet.post(task, signed(make_task(task=task)))
            await fleet.execution(task, lambda e: e.phase is Phase.WAITING)
            await fleet.status(task, TaskState.SUCCEEDED)
            await fleet.state(task, ExecutionState.SUCCEEDED)
    await fleet.post("removed", b"")
    async with running(device, fleet.broker):
        await fleet.until(lambda: fleet.said[f"{OWN}/tasks/removed/execution"][-1] == b"")
        assert fleet.executions("kept")[-1].state is ExecutionState.SUCCEEDED
        assert b"" not in fleet.said[f"{OWN}/tasks/kept/execution"]
        # The journal has it still: should the task stand after all, it is not done twice.
        await fleet.post("removed", signed(make_task(task="removed")))
        await fleet.until(lambda: fleet.said[f"{OWN}/tasks/removed/execution"][-1] != b"")
        assert fleet.executions("removed")[-1].state is ExecutionState.SUCCEEDED


async def test_a_new_revision_takes_the_place_of_the_running_one(device, fleet, flower, make_task, signed):
    async with running(device, fleet.broker):
        await fleet.post("blobs", signed(make_task()))
        await fleet.execution("blobs", lambda e: e.phase is Phase.WAITING)
        await fleet.post("blobs", signed(make_task(revision=2)))
        execution = await fleet.execution("blobs", lambda e: e.revision == 2 and e.phase is Phase.WAITING)
        assert execution.attempt == 2
        assert not any(e.state.ended for e in fleet.executions("blobs"))


@pytest.mark.parametrize("called_off", ["canceled", "succeeded", "removed"])
async def test_of_a_task_that_is_called_off_nothing_is_said_once_a_new_revision_has_come(
    device, fleet, flower, make_task, signed, called_off
):
    pushing, go_on = threading.Event(), threading.Event()

    def hold(_: str) -> None:
        pushing.set()
        assert go_on.wait(20)

    flower.pushing = hold
    flower.send("query", {"task": "blobs", "nonce": "n1"})
    async with running(device, fleet.broker):
        await fleet.post("blobs", signed(task := make_task()))
        await asyncio.to_thread(pushing.wait, 20)
        match called_off:
            case "canceled":
                await fleet.post("blobs", signed(task.canceled()))
            case "succeeded":
                await fleet.status("blobs", TaskState.SUCCEEDED)
            case "removed":
                await fleet.post("blobs", b"")
        await fleet.post("blobs", signed(make_task(revision=3)))
        queued = await fleet.execution("blobs", lambda e: e.revision == 3)
        go_on.set()
        await fleet.execution("blobs", lambda e: e.version > queued.version and e.phase is Phase.WAITING)
    said = [e for e in fleet.executions("blobs") if e.version >= queued.version]
    assert {(e.revision, e.attempt) for e in said} == {(3, 2)}
    assert [e.phase for e in said] == [None, Phase.VERIFYING, Phase.CONNECTING, Phase.WAITING]


async def test_a_restarted_device_goes_on_with_its_task_before_others(
    device, fleet, flower, make_task, signed
):
    def issued(minutes: int) -> str:
        return (datetime.now(UTC) - timedelta(minutes=minutes)).isoformat()

    async with running(device, fleet.broker):
        await fleet.post("blobs", going_on := signed(make_task(issued_at=issued(3))))
        await fleet.execution("blobs", lambda e: e.phase is Phase.WAITING)
    assert flower.deactivated == [False]
    assert fleet.executions("blobs")[-1].state is ExecutionState.IN_PROGRESS
    # The broker hands out the other task's descriptor first.
    await fleet.post("blobs", b"")
    await fleet.post("older", signed(make_task(task="older", issued_at=issued(9))))
    await fleet.post("blobs", going_on)
    async with running(device, fleet.broker):
        execution = await fleet.execution("blobs", lambda e: e.attempt == 2 and e.phase is Phase.WAITING)
        assert execution.version > 4
        assert [e.state for e in fleet.executions("older")] == [ExecutionState.QUEUED]


async def test_a_restarted_device_goes_on_with_its_task_when_it_was_signed_anew(
    device, fleet, flower, make_task, signed
):
    task = make_task()
    async with running(device, fleet.broker):
        await fleet.post("blobs", signed(task))
        await fleet.execution("blobs", lambda e: e.phase is Phase.WAITING)
    await fleet.post("blobs", signed(task.model_copy(update={"issued_at": datetime.now(UTC)})))
    async with running(device, fleet.broker):
        await fleet.execution("blobs", lambda e: e.attempt == 2 and e.phase is Phase.WAITING)
        await fleet.status("blobs", TaskState.SUCCEEDED)
        await fleet.state("blobs", ExecutionState.SUCCEEDED)


async def test_a_restarted_device_leaves_ended_tasks_alone_and_says_again_how_they_ended(
    device, fleet, flower, make_task, signed
):
    async with running(device, fleet.broker):
        await fleet.post("blobs", signed(make_task()))
        await fleet.execution("blobs", lambda e: e.phase is Phase.WAITING)
        await fleet.status("blobs", TaskState.SUCCEEDED)
        ended = await fleet.state("blobs", ExecutionState.SUCCEEDED)
    before = len(fleet.executions("blobs"))
    async with running(device, fleet.broker):
        await fleet.until(lambda: len(fleet.executions("blobs")) > before)
        assert fleet.executions("blobs")[-1] == ended
    assert len(flower.deactivated) == 1


async def test_a_rejected_task_is_looked_at_anew_after_a_restart(device, fleet, flower, make_task, signed):
    other = replace(device, settings=replace(device.settings, servers=("127.0.0.1:9999",)))
    await fleet.post("blobs", signed(make_task()))
    async with running(other, fleet.broker):
        assert (await fleet.state("blobs", ExecutionState.REJECTED)).reason.code == "server"
    async with running(device, fleet.broker):
        execution = await fleet.execution("blobs", lambda e: e.phase is Phase.WAITING)
        assert execution.attempt == 1  # it never began before


@pytest.mark.parametrize(
    ("off_by", "code"), [(timedelta(days=-400), "clock"), (timedelta(days=400), "expired")]
)
async def test_a_task_that_is_out_of_its_time_is_rejected_until_the_clock_is_right(
    device, fleet, flower, make_task, signed, monkeypatch, off_by, code
):
    right, looks = datetime.now(UTC), 0
    now = right + off_by

    def clock() -> datetime:
        nonlocal looks
        looks += 1
        return now

    monkeypatch.setattr(device_agent.agent, "LOOK_AGAIN_S", 0.05)
    monkeypatch.setattr(device_agent.agent, "_utc_now", clock)
    async with running(device, fleet.broker):
        await fleet.post("blobs", signed(make_task()))
        rejected = await fleet.state("blobs", ExecutionState.REJECTED)
        assert rejected.reason.code == code
        assert "the device looks again by itself" in rejected.reason.message
        before = looks
        await fleet.until(lambda: looks >= before + 5)
        assert fleet.executions("blobs")[-1] == rejected
        now = right
        await fleet.execution("blobs", lambda e: e.phase is Phase.WAITING)
    assert [e.state for e in fleet.executions("blobs")].count(ExecutionState.REJECTED) == 1


def issued(make_task: Any, task: str, minutes: float) -> Any:
    """A task that was issued so many minutes ago."""
    return make_task(task=task, issued_at=(datetime.now(UTC) - timedelta(minutes=minutes)).isoformat())


async def test_a_task_of_which_nothing_has_begun_gives_way_to_one_issued_before_it(
    device, fleet, flower, make_task, signed
):
    async with running(device, fleet.broker):
        await fleet.post("later", signed(issued(make_task, "later", 1)))
        await fleet.execution("later", lambda e: e.phase is Phase.WAITING)
        await fleet.post("earlier", signed(issued(make_task, "earlier", 2)))
        await fleet.execution("earlier", lambda e: e.phase is Phase.WAITING)
        waiting = fleet.executions("later")[-1]
        assert (waiting.state, waiting.attempt, waiting.reason.code) == (ExecutionState.QUEUED, 1, "turn")
        await fleet.post("latest", signed(issued(make_task, "latest", 0.5)))
        await fleet.state("latest", ExecutionState.QUEUED)
        await fleet.post("earlier", b"")
        await fleet.state("earlier", ExecutionState.CANCELED)
        await fleet.until(lambda: fleet.executions("later")[-1].phase is Phase.WAITING)
        assert fleet.executions("latest")[-1].state is ExecutionState.QUEUED


async def test_a_task_that_has_begun_gives_way_to_none(device, fleet, flower, make_task, signed):
    initial = open_backend("torch", "softmax", shape=(4,), classes=3, seed=5).initial()
    flower.send("train", {"task": "later", "round": 1}, initial)
    async with running(device, fleet.broker):
        await fleet.post("later", signed(issued(make_task, "later", 1)))
        await fleet.execution("later", lambda e: e.phase is Phase.UPLOADED)
        await fleet.post("earlier", signed(issued(make_task, "earlier", 2)))
        await fleet.state("earlier", ExecutionState.QUEUED)
        assert ExecutionState.IN_PROGRESS not in {e.state for e in fleet.executions("earlier")}
        assert fleet.executions("later")[-1].phase is Phase.UPLOADED


async def test_a_task_that_is_called_off_while_it_gives_way_is_canceled(
    device, fleet, flower, make_task, signed
):
    pushing, go_on = threading.Event(), threading.Event()

    def hold(_: str) -> None:
        pushing.set()
        go_on.wait(20)

    flower.pushing = hold
    async with running(device, fleet.broker):
        await fleet.post("later", signed(issued(make_task, "later", 1)))
        flower.send("query", {"task": "later", "nonce": "n1"})
        await asyncio.to_thread(pushing.wait, 20)
        await fleet.post("earlier", signed(issued(make_task, "earlier", 2)))
        await fleet.state("earlier", ExecutionState.QUEUED)
        await fleet.post("later", b"")
        await fleet.post("foreign", signed(make_task(task="foreign", regions=["us-1"])))
        await fleet.state("foreign", ExecutionState.REJECTED)  # so what came before it has been heard, too
        go_on.set()
        await fleet.execution("earlier", lambda e: e.phase is Phase.WAITING)
        assert fleet.executions("later")[-1].state is ExecutionState.CANCELED


@pytest.mark.parametrize("word", ["removed", "canceled", "revised"])
async def test_what_comes_of_a_task_after_it_has_said_that_it_gives_way_counts(
    device, fleet, flower, make_task, signed, monkeypatch, word
):
    monkeypatch.setattr("device_agent.participation.STOP_S", 0.1)
    device = replace(device, pace=replace(device.pace, idle_s=0.1))
    pushing, go_on = threading.Event(), threading.Event()

    def hold(_: str) -> None:
        pushing.set()
        go_on.wait(20)

    flower.pushing = hold
    async with running(device, fleet.broker):
        await fleet.post("later", signed(later := issued(make_task, "later", 1)))
        flower.send("query", {"task": "later", "nonce": "n1"})
        await asyncio.to_thread(pushing.wait, 20)
        await fleet.post("earlier", signed(issued(make_task, "earlier", 2)))
        await fleet.execution("later", lambda e: e.reason and e.reason.code == "turn")
        revised = later.model_copy(update={"revision": 2})
        words = {"removed": b"", "canceled": signed(later.canceled()), "revised": signed(revised)}
        await fleet.post("later", words[word])
        await fleet.post("foreign", signed(make_task(task="foreign", regions=["us-1"])))
        await fleet.state("foreign", ExecutionState.REJECTED)  # so what came before it has been heard, too
        go_on.set()
        await fleet.execution("earlier", lambda e: e.phase is Phase.WAITING)
        await fleet.post("earlier", b"")
        await fleet.state("earlier", ExecutionState.CANCELED)
        if word == "revised":
            await fleet.execution("later", lambda e: e.revision == 2 and e.phase is Phase.WAITING)
            query = flower.send("query", {"task": "later", "nonce": "n2", "revision": 2})
            assert (await asyncio.to_thread(flower.reply, query)).has_content()
        else:
            last = fleet.executions("later")[-1]
            assert (last.state, last.reason.code) == (ExecutionState.CANCELED, word)


async def test_the_same_descriptor_again_changes_nothing(device, fleet, flower, make_task, signed):
    envelope = signed(make_task())
    async with running(device, fleet.broker):
        for _ in range(3):
            await fleet.post("blobs", envelope)
        await fleet.execution("blobs", lambda e: e.phase is Phase.WAITING)
        fleet.broker.cut(fleet.states()[0].boot_id)  # retained messages come again
        await fleet.until(lambda: len(fleet.states()) >= 3)
        await asyncio.sleep(0.1)
        assert fleet.executions("blobs")[-1].attempt == 1
        assert len({e.version for e in fleet.executions("blobs") if e.state is ExecutionState.QUEUED}) == 1


async def test_a_broker_that_lost_all_hears_again_of_the_tasks_in_hand_and_in_the_queue(
    device, fleet, flower, make_task, signed
):
    async with running(device, fleet.broker):
        await fleet.post("blobs", signed(make_task()))
        await fleet.execution("blobs", lambda e: e.phase is Phase.WAITING)
        await fleet.post("next", signed(make_task(task="next")))
        await fleet.state("next", ExecutionState.QUEUED)
        in_hand, queued = fleet.executions("blobs")[-1], fleet.executions("next")[-1]
        fleet.broker.stop()
        fleet.said.clear()
        fleet.broker.start()  # nobody posts the tasks again: the gateway is away
        await fleet.until(lambda: fleet.executions("blobs") and fleet.executions("next"))
        assert (fleet.executions("blobs")[-1], fleet.executions("next")[-1]) == (in_hand, queued)


async def test_a_gateway_that_lost_all_hears_again_of_the_task_that_it_posts_again(
    device, fleet, flower, make_task, signed
):
    envelope = signed(make_task())
    async with running(device, fleet.broker):
        await fleet.post("blobs", envelope)
        await fleet.execution("blobs", lambda e: e.phase is Phase.WAITING)
        in_hand = fleet.executions("blobs")[-1]
        fleet.said.clear()
        await fleet.post("blobs", envelope)
        await fleet.until(lambda: fleet.executions("blobs"))
        assert fleet.executions("blobs") == [in_hand]


async def test_the_revision_is_in_the_journal_before_anything_is_said(
    device, fleet, flower, make_task, signed
):
    async with running(device, fleet.broker):
        await fleet.post("blobs", signed(make_task(revision=5)))
        await fleet.until(lambda: fleet.executions("blobs"))
        seen = device.journal.seen("blobs")
        assert isinstance(seen, Seen)
        assert seen.revision == 5


async def test_log_lines_carry_tracebacks_and_keep_to_ten_a_second(
    device, fleet, flower, make_task, signed, monkeypatch
):
    clock = HeldClock.of(task_log, monkeypatch)
    logger = logging.getLogger("device_agent.test")
    logger.setLevel(logging.INFO)
    async with running(device, fleet.broker):
        await fleet.post("blobs", signed(make_task()))
        await fleet.execution("blobs", lambda e: e.phase is Phase.WAITING)
        clock.now += 1.1
        fleet.said.pop(f"{OWN}/tasks/blobs/log", None)
        try:
            raise RuntimeError("the camera fell down")
        except RuntimeError:
            logger.exception("it broke")
        for number in range(30):
            logger.info("line %d", number)
        await fleet.until(lambda: len(fleet.logs("blobs")) == 10)
        clock.now += 1.1
        logger.info("later")
        await fleet.until(lambda: len(fleet.logs("blobs")) == 11)
    logs = fleet.logs("blobs")
    assert logs[0].level == "ERROR"
    assert logs[0].message.startswith("it broke\nTraceback (most recent call last)")
    assert logs[0].message.endswith("RuntimeError: the camera fell down")
    assert logs[-1].message == "(21 lines left out) later"
