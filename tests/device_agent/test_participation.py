# ruff: noqa: PLR0917 - fixtures are parameters, which pytest passes by name
from __future__ import annotations

import asyncio
import itertools
import json
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
from flwr.app import ArrayRecord, MetricRecord

from device_agent.eligibility import Believed
from device_agent.participation import Device, Ending, Participation
from device_agent.reporting import HERE_ONLY, TaskReport
from device_agent.trainer import Trainer
from models.backends import open_backend
from models.backends.torch import TorchBackend
from trellis.errors import Unavailable
from trellis.flower.link_loop import Halt
from trellis.mqtt import Bus, MemoryBroker
from trellis.payloads import Execution, ExecutionState, Phase, Progress, Reason, Round, RoundPhase
from trellis.tensors import unpack_arrays

NODE_ID = 4711
CONFIG = {"task": "blobs", "round": 1, "server-round": 1}


@dataclass
class Watched:
    """What an MQTT client sees of one device's task."""

    executions: list[Execution] = field(default_factory=list)
    progress: list[Progress] = field(default_factory=list)

    async def until(self, due: Callable[[Execution], bool], timeout_s: float = 60.0) -> Execution:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            for execution in self.executions:
                if due(execution):
                    return execution
            await asyncio.sleep(0.01)
        raise AssertionError(f"not seen: {[(e.state, e.phase, e.reason) for e in self.executions]}")

    async def phase(self, phase: Phase) -> Execution:
        return await self.until(lambda execution: execution.phase is phase)


@pytest_asyncio.fixture
async def broker() -> MemoryBroker:
    return MemoryBroker()


@pytest_asyncio.fixture
async def bus(broker: MemoryBroker) -> AsyncIterator[Bus]:
    async with broker.bus("device") as bus:
        yield bus


@pytest_asyncio.fixture
async def watched(broker: MemoryBroker) -> AsyncIterator[Watched]:
    seen = Watched()

    async def watch(messages: AsyncIterator[Any]) -> None:
        async for message in messages:
            if message.topic.endswith("/execution"):
                seen.executions.append(Execution.parse(message.payload))
            elif message.topic.endswith("/progress"):
                seen.progress.append(Progress.parse(message.payload))

    async with broker.bus("watcher") as bus, bus.subscribe("trellis/v1/#") as messages:
        await bus.wait_connected(30)
        watching = asyncio.create_task(watch(messages))
        yield seen
        watching.cancel()


@pytest.fixture
def initial(make_task) -> dict[str, np.ndarray]:
    seed = make_task().train.seed
    return open_backend("torch", "softmax", shape=(4,), classes=3, seed=seed).initial()


def report_of(device: Device, bus: Bus) -> TaskReport:
    settings = device.settings
    return TaskReport(
        bus, device.journal, settings.topics, region=settings.region, device=settings.name, task="blobs"
    )


@asynccontextmanager
async def taking_part(
    device: Device, bus: Bus, task: Any, digest: str = "d", front: str | None = None
) -> AsyncIterator[tuple[Participation, asyncio.Task[Ending]]]:
    report = report_of(device, bus)
    await report.queued(task.revision, samples=len(device.data), backend="torch")
    participation = Participation(Believed(task, digest, "k", front), device=device, report=report)
    running = asyncio.create_task(participation.run())
    try:
        yield participation, running
    finally:
        running.cancel()
        await asyncio.wait([running], timeout=40)


def announced(count: int, phase: RoundPhase = RoundPhase.TRAIN) -> Round:
    return Round(round=1, rounds=3, phase=phase, announced=count)


async def replied(flower: Any, message_id: str) -> Any:
    return await asyncio.to_thread(flower.reply, message_id)


async def test_a_check_in_shows_node_and_nonce_before_the_reply_is_sent(
    device, bus, watched, flower, make_task
):
    shown: list[bool] = []

    def pushing(_: str) -> None:
        shown.append(any(e.flower and e.flower.nonce == "n1" for e in watched.executions))
        # The watcher lives on the event loop, which goes on while the device's thread is here.
        deadline = time.monotonic() + 20
        while not shown[-1] and time.monotonic() < deadline:
            time.sleep(0.01)
            shown[-1] = any(e.flower and e.flower.nonce == "n1" for e in watched.executions)

    flower.pushing = pushing
    query = flower.send("query", {"task": "blobs", "nonce": "n1"})
    async with taking_part(device, bus, make_task()):
        reply = await replied(flower, query)
        assert shown == [True]
        assert dict(reply.content["config"]) == {
            "task": "blobs",
            "region": "eu-1",
            "device": "cam-7",
            "nonce": "n1",
            "samples": 64,
        }
        execution = await watched.until(lambda e: bool(e.flower and e.flower.message_id == query))
        assert execution.phase is Phase.WAITING
        assert (execution.flower.node_id, execution.flower.nonce) == (NODE_ID, "n1")
    phases = [(e.state, e.phase) for e in watched.executions]
    assert phases[:5] == [
        (ExecutionState.QUEUED, None),
        (ExecutionState.IN_PROGRESS, Phase.VERIFYING),
        (ExecutionState.IN_PROGRESS, Phase.CONNECTING),
        (ExecutionState.IN_PROGRESS, Phase.WAITING),
        (ExecutionState.IN_PROGRESS, Phase.WAITING),
    ]
    versions = [e.version for e in watched.executions]
    assert versions == list(range(1, len(versions) + 1))


async def test_a_device_says_that_it_is_asked_while_its_message_is_still_on_its_way(
    device, bus, watched, flower, make_task, initial
):
    come = threading.Event()
    flower.coming = lambda: come.wait(30)
    train = flower.send("train", CONFIG, initial)
    async with taking_part(device, bus, make_task()):
        await watched.phase(Phase.ASKED)
        assert Phase.TRAINING not in [e.phase for e in watched.executions]
        come.set()
        await replied(flower, train)
        await watched.phase(Phase.UPLOADED)
    phases = [e.phase for e in watched.executions if e.phase is not None]
    assert phases[2:6] == [Phase.WAITING, Phase.ASKED, Phase.TRAINING, Phase.UPLOADED]


async def test_a_device_says_that_it_is_asked_while_another_replica_trains(
    device, bus, watched, flower, make_task, initial
):
    train = flower.send("train", CONFIG, initial)
    with device.turns.turn(lambda: False, lambda: None):
        async with taking_part(device, bus, make_task()):
            asked = await watched.phase(Phase.ASKED)
            assert asked.flower.connects == 1
    assert train not in flower.replies


async def test_training_follows_descriptor_seed_device_and_round(
    device, bus, watched, flower, make_task, initial
):
    train = flower.send("train", CONFIG, initial)
    async with taking_part(device, bus, make_task()):
        reply = await replied(flower, train)
        await watched.until(lambda e: e.phase is Phase.UPLOADED and e.flower.message_id == train)
        assert (await watched.phase(Phase.TRAINING)).round == 1
    metrics = reply.content["metrics"]
    assert isinstance(metrics, MetricRecord)
    assert metrics["num-examples"] == 64
    arrays = reply.content["arrays"]
    assert isinstance(arrays, ArrayRecord)
    own = Trainer.open(make_task(), device.data, backend="torch", region="eu-1", device="cam-7", threads=1)
    from device_agent.trainer import Request  # noqa: PLC0415 - named where it is used

    due = own.train(initial, Request(1))
    for name, array in unpack_arrays(arrays).items():
        np.testing.assert_array_equal(array, due.arrays[name])
    other = own.train(initial, Request(2))
    assert any((other.arrays[name] != due.arrays[name]).any() for name in due.arrays)


@pytest.mark.parametrize("tier", ["central", "regional"])
async def test_what_every_round_brings_is_not_published_from_a_region_that_averages(
    device, bus, flower, make_task, initial, caplog, tier
):
    caplog.set_level(logging.INFO, logger="device_agent.client_app")
    train = flower.send("train", CONFIG, initial)
    async with taking_part(device, bus, make_task(aggregation={"tier": tier}), front="127.0.0.1:8000"):
        await replied(flower, train)
    (line,) = [one for one in caplog.records if one.getMessage().startswith("round 1: trained on 64 samples")]
    assert getattr(line, HERE_ONLY) is (tier == "regional")


async def test_evaluation_answers_with_metrics_only(device, bus, watched, flower, make_task, initial):
    evaluate = flower.send("evaluate", CONFIG, initial)
    async with taking_part(device, bus, make_task()):
        reply = await replied(flower, evaluate)
        await watched.until(lambda e: e.phase is Phase.UPLOADED and e.flower.message_id == evaluate)
    assert set(reply.content) == {"metrics"}
    assert set(reply.content["metrics"]) == {"num-examples", "eval_loss", "eval_accuracy"}
    assert reply.content["metrics"]["num-examples"] == 64


async def test_the_initial_loss_stands_in_for_the_train_loss_when_asked(
    device, bus, flower, make_task, initial
):
    train = flower.send("train", CONFIG | {"report-initial-loss": True}, initial)
    evaluate = flower.send("evaluate", CONFIG, initial)
    async with taking_part(device, bus, make_task()):
        metrics = (await replied(flower, train)).content["metrics"]
        at_first = (await replied(flower, evaluate)).content["metrics"]["eval_loss"]
    assert metrics["train_loss"] == pytest.approx(at_first, rel=1e-6)
    assert metrics["final_loss"] < metrics["train_loss"]


async def test_a_repeated_question_is_answered_without_training_again(
    device, bus, watched, flower, make_task, initial
):
    first = flower.send("train", CONFIG, initial)
    async with taking_part(device, bus, make_task()) as (participation, _):
        before = await replied(flower, first)
        second = flower.send("train", CONFIG, initial)
        participation.round_changed(announced(2))
        after = await replied(flower, second)
    assert after.content["arrays"]["packed"].data == before.content["arrays"]["packed"].data
    assert dict(after.content["metrics"]) == dict(before.content["metrics"])
    assert [e.phase for e in watched.executions].count(Phase.TRAINING) == 1


async def test_a_foreign_tasks_message_gets_an_error_and_trains_nothing(
    device, bus, watched, flower, make_task, initial
):
    train = flower.send("train", CONFIG | {"task": "other"}, initial)
    async with taking_part(device, bus, make_task()):
        reply = await replied(flower, train)
    assert reply.error.code == 101
    assert reply.error.reason == "'eu-1/cam-7' works on task 'blobs', the message is of 'other'"
    assert Phase.TRAINING not in [e.phase for e in watched.executions]


async def test_a_message_of_another_revision_gets_an_error_and_trains_nothing(
    device, bus, watched, flower, make_task, initial
):
    train = flower.send("train", CONFIG | {"revision": 7}, initial)
    async with taking_part(device, bus, make_task()):
        reply = await replied(flower, train)
    assert reply.error.code == 101
    assert reply.error.reason == (
        "'eu-1/cam-7' works on revision 1 of task 'blobs', the message is of revision 7"
    )
    assert Phase.TRAINING not in [e.phase for e in watched.executions]


async def test_wrong_shapes_are_answered_with_the_tensor_that_does_not_fit(
    device, bus, watched, flower, make_task, initial
):
    wrong = initial | {"fc.bias": np.zeros(62, np.float32)}
    train = flower.send("train", CONFIG, wrong)
    async with taking_part(device, bus, make_task()):
        reply = await replied(flower, train)
        execution = await watched.until(lambda e: e.phase is Phase.UPLOADED)
    assert reply.error.code == 100
    assert "tensor 'fc.bias' has shape (62,), the model has (3,)" in reply.error.reason
    assert execution.reason is not None
    assert execution.reason.code == "training"


async def test_a_result_that_is_not_finite_is_no_update(device, bus, flower, make_task, initial):
    train = flower.send("train", CONFIG, {name: np.full_like(a, np.nan) for name, a in initial.items()})
    async with taking_part(device, bus, make_task()):
        reply = await replied(flower, train)
    assert reply.error.code == 100
    assert "the loss is nan" in reply.error.reason


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"round": -1}, "its round must be a number from 0, got -1"),
        ({"round": "1"}, "its round must be a number from 0, got '1'"),
        ({"proximal-mu": "much"}, "its proximal-mu must be a number, got 'much'"),
        ({"proximal-mu": -1.0}, "proximal_mu: -1.0 came, a number of at least 0 is due"),
        ({"report-initial-loss": 1}, "its report-initial-loss must be a boolean, got 1"),
    ],
)
async def test_a_malformed_message_is_answered_with_its_fault(
    device, bus, flower, make_task, initial, change, problem
):
    train = flower.send("train", CONFIG | change, initial)
    async with taking_part(device, bus, make_task()):
        reply = await replied(flower, train)
    assert reply.error.code == 100
    assert problem in reply.error.reason


async def test_messages_without_their_records_or_of_unknown_kind_are_answered_with_errors(
    device, bus, flower, make_task
):
    bare = flower.send("train", CONFIG)
    odd = flower.send("train.backwards", CONFIG)
    async with taking_part(device, bus, make_task()):
        assert "has no ArrayRecord 'arrays'" in (await replied(flower, bare)).error.reason
        assert "backwards" in (await replied(flower, odd)).error.reason


async def test_a_cancellation_stops_training_within_a_batch(
    device, bus, watched, flower, make_task, initial, monkeypatch
):
    gradient, begun = TorchBackend._gradient, []

    def until_called(self, *given):  # a batch that lasts until the cancellation has come to the thread
        begun.append(given)
        participation._halt.wait_called(2)
        return gradient(self, *given)

    monkeypatch.setattr(TorchBackend, "_gradient", until_called)
    endless = make_task(train={"rounds": 1, "local_epochs": 10_000, "batch_size": 1, "learning_rate": 0.01})
    train = flower.send("train", CONFIG, initial)
    async with taking_part(device, bus, endless) as (participation, running):
        await watched.phase(Phase.TRAINING)
        before = len(begun)
        reason = Reason(code="canceled", message="called off")
        participation.end(Ending(ExecutionState.CANCELED, reason))
        await asyncio.wait_for(running, 40)
        assert len(begun) - before <= 1
    assert flower.replies[train].error.code == 102
    assert flower.deactivated == [True]
    last = watched.executions[-1]
    assert (last.state, last.reason.code) == (ExecutionState.CANCELED, "canceled")


async def test_the_next_task_waits_for_a_batch_that_outlives_its_task(
    device, bus, watched, flower, make_task, initial, monkeypatch
):
    monkeypatch.setattr("device_agent.participation.STOP_S", 0.1)
    release = threading.Event()
    train_once = Trainer.train

    def slowly(self, arrays, request, **hooks):
        release.wait(60)
        return train_once(self, arrays, request, **hooks)

    monkeypatch.setattr(Trainer, "train", slowly)
    flower.send("train", CONFIG, initial)
    async with taking_part(device, bus, make_task()) as (participation, running):
        await watched.phase(Phase.TRAINING)
        participation.end(Ending(ExecutionState.SUCCEEDED))
        ended = await watched.until(lambda e: e.state is ExecutionState.SUCCEEDED)
        done, _ = await asyncio.wait([running], timeout=0.5)
        assert not done  # its thread has the node key still
        release.set()
        await asyncio.wait_for(running, 40)
    assert flower.deactivated == [True]
    assert watched.executions[-1] == ended  # what the thread said afterwards did not count


async def test_a_stopping_process_leaves_its_message_to_the_next_which_answers_it(
    device, bus, watched, flower, make_task, initial
):
    slow = make_task(train={"rounds": 1, "local_epochs": 10_000, "batch_size": 1, "learning_rate": 0.01})
    flower.send("query", {"task": "blobs", "nonce": "n1"})
    train = flower.send("train", CONFIG, initial)
    async with taking_part(device, bus, slow) as (_, running):
        await watched.phase(Phase.TRAINING)
        running.cancel()
        await asyncio.wait([running], timeout=40)
    assert train not in flower.replies
    assert flower.deactivated == [False]
    assert watched.executions[-1].state is ExecutionState.IN_PROGRESS

    quick = make_task(train={"rounds": 1, "local_epochs": 1, "batch_size": 8, "learning_rate": 0.01})
    async with taking_part(device, bus, quick):
        assert (await replied(flower, train)).has_content()
        last = await watched.until(lambda e: e.attempt == 2 and e.phase is Phase.UPLOADED)
    assert (last.flower.node_id, last.flower.nonce) == (NODE_ID, "n1")


async def test_a_reply_uploaded_before_a_crash_is_announced_at_the_next_start(
    device, bus, watched, flower, make_task
):
    task = make_task()
    report = report_of(device, bus)
    await report.queued(task.revision, samples=64, backend="torch")
    await report.phase(Phase.WAITING)
    await report.checked_in(NODE_ID, "n1")
    report.replying("m77")
    async with taking_part(device, bus, task):
        execution = await watched.until(lambda e: bool(e.flower and e.flower.message_id == "m77"))
    assert execution.attempt == 2


async def test_a_reply_whose_upload_was_cut_is_announced_only_once_it_is_whole(
    device, bus, watched, flower, make_task
):
    pushes: list[str] = []
    announced_early: list[bool] = []

    def connected_again() -> bool:
        broke = [e.version for e in watched.executions if e.reason is not None]
        return any(e.phase is Phase.WAITING and e.version > broke[0] for e in watched.executions if broke)

    def pushing(message_id: str) -> None:
        pushes.append(message_id)
        if len(pushes) == 1:
            raise Unavailable("the connection broke in the middle of it")
        _until(connected_again)
        announced_early.append(any(e.flower and e.flower.message_id for e in watched.executions))

    flower.pushing = pushing
    query = flower.send("query", {"task": "blobs", "nonce": "n1"})
    async with taking_part(device, bus, make_task()):
        await watched.until(lambda e: bool(e.flower and e.flower.message_id == query))
    assert pushes == [query, query]
    assert announced_early == [False]


async def test_a_device_counts_how_often_it_connects_with_nothing_in_hand(
    device, bus, watched, flower, make_task
):
    flower.pushing = lambda _: cut()
    breaks = [Unavailable("cut"), Unavailable("cut")]

    def cut() -> None:
        if breaks:
            raise breaks.pop()

    query = flower.send("query", {"task": "blobs", "nonce": "n1"})
    async with taking_part(device, bus, make_task()) as (participation, _):
        shown = await watched.until(lambda e: bool(e.flower and e.flower.message_id == query))
        assert shown.flower.connects == 1, "while the answer was in hand nothing else can have been lost"
        flower.down = True
        participation.round_changed(announced(1))
        await watched.until(lambda e: e.reason is not None and e.reason.message.endswith("answer"))
        flower.down = False
        shown = await watched.until(lambda e: bool(e.flower and e.flower.connects == 2))
        assert (shown.flower.nonce, shown.flower.message_id) == ("n1", query)


async def test_a_server_that_is_away_is_tried_again_and_named(device, bus, watched, flower, make_task):
    flower.down = True
    query = flower.send("query", {"task": "blobs", "nonce": "n1"})
    async with taking_part(device, bus, make_task()):
        execution = await watched.until(lambda e: e.reason is not None)
        assert execution.phase is Phase.CONNECTING
        assert execution.reason == Reason(code="unavailable", message="127.0.0.1:8000 does not answer")
        flower.down = False
        await replied(flower, query)
        assert (await watched.phase(Phase.WAITING)).reason is None
    assert sum(e.reason is not None for e in watched.executions) == 1


async def test_a_reply_that_cannot_be_uploaded_is_tried_at_growing_distances(
    device, bus, flower, make_task, monkeypatch
):
    deaf, waits = [], []
    wait_news = Halt.wait_news

    def waiting(halt: Halt, timeout_s: float) -> None:
        waits.append(deaf[-1] + timeout_s)
        if len(waits) > 4:  # those that follow a success
            wait_news(halt, timeout_s)

    monkeypatch.setattr("trellis.flower.link_loop.random.uniform", lambda _, most: most)
    monkeypatch.setattr(Halt, "wait_called", lambda _, timeout_s: deaf.append(timeout_s))
    monkeypatch.setattr(Halt, "wait_news", waiting)
    pushes: list[str] = []

    def pushing(message_id: str) -> None:
        pushes.append(message_id)
        if len(pushes) <= 4:
            raise Unavailable("the connection broke in the middle of it")

    flower.pushing = pushing
    query = flower.send("query", {"task": "blobs", "nonce": "n1"})
    async with taking_part(device, bus, make_task()):
        await replied(flower, query)
    # From 0.05 s, doubling to 0.2 s at most, although each try finds the message in the inbox.
    assert waits[:4] == pytest.approx([0.05, 0.1, 0.2, 0.2])
    # An announcement says that the server is there again: it ends all of a wait but the first 0.05 s.
    assert deaf[:4] == [0.05] * 4
    assert pushes == [query] * 5


async def test_a_refused_reply_is_noticed_and_the_device_goes_on(
    device, bus, flower, make_task, initial, caplog
):
    caplog.set_level(logging.WARNING, "device_agent")
    flower.refuse_replies = True
    first = flower.send("train", CONFIG, initial)
    refusals = threading.Event()
    flower.pushing = lambda _: refusals.set()
    async with taking_part(device, bus, make_task()) as (participation, _):
        assert await asyncio.to_thread(refusals.wait, 20)
        await asyncio.to_thread(_until, lambda: first not in flower._unanswered)
        flower.refuse_replies = False
        second = flower.send("query", {"task": "blobs", "nonce": "n1"})
        participation.round_changed(announced(2))
        await replied(flower, second)
    assert first not in flower.replies
    assert "the run of m1 is over" in caplog.text


async def test_announcements_cause_pulls_and_empty_pulls_keep_their_distance(
    device, bus, watched, flower, make_task
):
    device = replace(device, pace=replace(device.pace, idle_s=3600, recheck_s=3600))
    async with taking_part(device, bus, make_task()) as (participation, _):
        await watched.phase(Phase.WAITING)
        await asyncio.to_thread(_until, lambda: len(flower.pulls) == 1)
        began, count = time.monotonic(), 0
        async with asyncio.timeout(60):
            while count < 39 or len(flower.pulls) < 4:
                count += 1
                said = time.monotonic()
                participation.round_changed(announced(count))
                await asyncio.sleep(0.02)
        ended = time.monotonic()
        await asyncio.to_thread(_until, lambda: flower.pulls[-1][0] > said)
        quiet = len(flower.pulls)
        participation.round_changed(announced(count))  # nothing new: no pull
        participation.round_changed(announced(count, RoundPhase.AGGREGATE))
        await asyncio.sleep(0.5)
        # The last announcement may have come between that pull's look for news and the pull.
        assert len(flower.pulls) <= quiet + 1
    times = [at for at, _ in flower.pulls]
    counted = [later - earlier for earlier, later in itertools.pairwise(times[1:])]
    assert min(counted) >= 0.19  # Pace.empty_s of the fixture is 0.2
    # One each 0.2 s while announcements came, and the margins: 9 if they took 0.8 s.
    assert len(times) <= 5 + (ended - began) / 0.2


async def test_an_announcement_that_overtakes_its_message_is_followed_up(
    device, bus, watched, flower, make_task
):
    queries: list[str] = []

    def come_late() -> None:
        if len(flower.pulls) == 2:
            queries.append(flower.send("query", {"task": "blobs", "nonce": "n1"}))

    flower.found_nothing = come_late
    async with taking_part(device, bus, make_task()) as (participation, _):
        await asyncio.to_thread(_until, lambda: len(flower.pulls) == 1)
        participation.round_changed(announced(1))
        await asyncio.to_thread(_until, lambda: bool(queries))
        await replied(flower, queries[0])  # within half of `Pace.idle_s`


async def test_an_expired_task_times_out(device, bus, watched, flower, make_task):
    from datetime import UTC, datetime, timedelta  # noqa: PLC0415 - only here

    soon = (datetime.now(UTC) + timedelta(seconds=0.5)).isoformat()
    async with taking_part(device, bus, make_task(expires_at=soon)) as (_, running):
        ending = await asyncio.wait_for(running, 60)
    assert ending.state is ExecutionState.TIMED_OUT
    assert watched.executions[-1].state is ExecutionState.TIMED_OUT


async def test_a_model_that_does_not_take_the_data_is_rejected(device, bus, watched, flower, make_task):
    async with taking_part(device, bus, make_task(model={"name": "lenet5"})) as (_, running):
        ending = await asyncio.wait_for(running, 60)
    assert ending.state is ExecutionState.REJECTED
    assert ending.reason.code == "model"
    assert "lenet5" in ending.reason.message
    assert flower.deactivated == []  # Flower was never reached


async def test_progress_comes_at_most_once_a_second(device, bus, watched, flower, make_task, initial):
    endless = make_task(train={"rounds": 1, "local_epochs": 10_000, "batch_size": 1, "learning_rate": 0.01})
    flower.send("train", CONFIG, initial)
    async with taking_part(device, bus, endless):
        await asyncio.to_thread(_until, lambda: len(watched.progress) >= 3)
    # By its own time: what is said may be heard late.
    times = [progress.ts for progress in watched.progress]
    assert all(later - earlier > 900 for earlier, later in itertools.pairwise(times))
    progress = watched.progress[1]
    assert (progress.round, progress.epochs, progress.steps) == (1, 10_000, 640_000)
    assert progress.eta_s > 0


async def test_one_thread_does_all_the_work(device, bus, flower, make_task, initial):
    trains = [flower.send("train", CONFIG | {"round": n}, initial) for n in (1, 2)]
    async with taking_part(device, bus, make_task()):
        for train in trains:
            await replied(flower, train)
    assert flower.threads == {"task blobs"}


async def test_the_journal_forgets_answers_when_the_task_ends(device, bus, flower, make_task, initial):
    train = flower.send("train", CONFIG, initial)
    async with taking_part(device, bus, make_task()) as (participation, running):
        await replied(flower, train)
        rows = "SELECT count(*) FROM answers"
        assert device.journal._connection.execute(rows).fetchone() == (1,)
        participation.end(Ending(ExecutionState.SUCCEEDED))
        await asyncio.wait_for(running, 40)
        assert device.journal._connection.execute(rows).fetchone() == (0,)


async def test_executions_are_readable_json(device, bus, watched, make_task, flower):
    async with taking_part(device, bus, make_task()):
        await watched.phase(Phase.WAITING)
    text = json.loads(watched.executions[-1].to_bytes())
    assert text["state"] == "IN_PROGRESS"
    assert text["samples"] == 64
    assert text["backend"] == "torch"


def _until(due: Callable[[], bool], timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not due():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.01)
