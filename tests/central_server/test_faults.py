"""A fault of the server's own, met while it works on one task, ends that task alone."""

from __future__ import annotations

import asyncio
import errno
from pathlib import Path
from typing import Any

import pytest

from central_server import log_keeping, papers, service
from central_server.store import REPORT, SUMMARY
from central_server.task import ServerTask
from tests.central_server.parts import Launcher, Running, descriptor, until
from trellis.payloads import CentralTask, Execution, ExecutionState, Reason, TaskState

STATE = "trellis/v1/central/tasks/digits-mlp/state"
REJECTION = "trellis/v1/eu-1/devices/cam-1/tasks/digits-mlp/execution"


async def published(running: Running, topic: str = STATE) -> CentralTask:
    async with running.broker.bus("watcher") as bus, bus.subscribe(topic) as messages:
        async for message in messages:
            return CentralTask.parse(message.payload)
    raise AssertionError("the broker has ended")


async def test_whatever_accuracy_is_said_the_task_ends_with_its_report(launch: Launcher) -> None:
    launch.script = ["deaf"]
    async with launch() as running:
        await running.post(descriptor())
        await until(lambda: running.server._tasks.find("digits-mlp").runs.app)
        async with running.backchannel as app:
            record = {"round": 1, "accuracy": 2.0, "metrics": {"train_accuracy": 2.0}}
            assert (await app.post("/app/digits-mlp/record", json=record)).status_code == 200
            assert (await app.post("/app/digits-mlp/state", json={"state": "succeeded"})).status_code == 200
        assert (await running.view())["state"] == "succeeded"
        assert "200.00%" in (running.runs / "digits-mlp" / REPORT).read_text()


async def test_a_report_that_cannot_be_made_decides_no_end_and_is_made_by_a_later_start(
    launch: Launcher, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: Any) -> str:
        raise ValueError("math domain error")

    launch.script = ["deaf"]
    folder: Path = launch.runs / "digits-mlp"
    reason = Reason(code="shape", message="its data has another shape")
    with monkeypatch.context() as broken:
        broken.setattr(papers, "render", fails)
        async with launch() as running, launch.broker.bus("cam-1") as device:
            await running.post(descriptor())
            task = running.server._tasks.find("digits-mlp")
            await until(lambda: task.runs.app)
            said = Execution(state=ExecutionState.REJECTED, version=1, reason=reason).to_bytes()
            await device.publish(REJECTION, said)
            await until(lambda: task.fleet.view.devices)
            async with running.backchannel as app:
                done = await app.post("/app/digits-mlp/state", json={"state": "succeeded"})
                assert done.status_code == 200
            summary = (folder / SUMMARY).read_bytes()
            assert b"another shape" in summary
            assert not (folder / REPORT).exists()
        line = "task=digits-mlp: report.html cannot be made: the task ends without it"
        assert [one.exc_info is not None for one in caplog.records if one.getMessage() == line] == [True]
        async with launch() as running:
            await running.reach("succeeded")
    async with launch() as running:
        await running.reach("succeeded")
        assert "another shape" in (folder / REPORT).read_text()
        assert (folder / SUMMARY).read_bytes() == summary
    (folder / SUMMARY).unlink()
    async with launch() as running:
        await running.reach("succeeded")
        assert (folder / SUMMARY).is_file()


async def test_a_task_whose_end_cannot_be_mended_keeps_no_server_from_its_start(
    launch: Launcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails(_: ServerTask) -> None:
        raise RuntimeError("a bug")

    launch.script = ["works", "works"]
    async with launch() as running:
        await running.post(descriptor())
        await running.reach("succeeded")
    monkeypatch.setattr(ServerTask, "mend", fails)
    async with launch() as running:
        await running.reach("succeeded")
        await running.post(descriptor(task="second"))
        await running.reach("succeeded", "second")


async def test_a_fault_while_a_task_is_driven_fails_that_task_alone_for_good(
    launch: Launcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails(*_: Any) -> None:
        raise RuntimeError("a\nbug")

    monkeypatch.setattr(ServerTask, "recovers", fails)
    launch.script = ["dies", "works"]
    async with launch() as running:
        await running.post(descriptor())
        view = await running.reach("failed")
        assert view["reason"]["code"] == "internal"
        assert view["reason"]["message"].endswith("see its log: RuntimeError: a bug")
        assert (await published(running)).state is TaskState.FAILED
        await running.post(descriptor(task="second"))
        await running.reach("succeeded", "second")
    launch.script = ["works"]
    async with launch() as running:
        assert (await running.view())["reason"] == view["reason"]
        assert (await published(running)).state is TaskState.FAILED
        await running.post(descriptor(task="third"))
        await running.reach("succeeded", "third")
        assert len(running.superlinks[-1].runs) == 1  # of the third alone


async def test_a_fault_beside_a_live_app_ends_the_app_and_its_topics_are_cleared_in_time(
    launch: Launcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = asyncio.Event()

    async def fails(*_: Any) -> None:
        await broken.wait()
        raise RuntimeError("a bug")

    launch.script = ["deaf", "works"]
    async with launch() as running:
        monkeypatch.setattr(service, "follow_fleet", fails)
        await running.post(descriptor())
        app = await until(lambda: running.server._tasks.find("digits-mlp").runs.app)
        broken.set()
        await running.reach("failed")
        await until(lambda: not app.alive)
        assert (await published(running)).state is TaskState.FAILED
        follower = running.server._followers["digits-mlp"]
        assert not follower.done()  # its topics stand as long as others'


async def test_what_may_pass_beside_a_live_app_is_waited_out(
    launch: Launcher, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    newest, failed = log_keeping.newest, asyncio.Event()

    def fails_once(*given: Any) -> Any:
        if not failed.is_set():
            failed.set()
            raise OSError(errno.EMFILE, "Too many open files")
        return newest(*given)

    monkeypatch.setattr(log_keeping, "newest", fails_once)
    launch.script = ["works", "works"]
    async with launch() as running:
        await running.post(descriptor())
        await running.reach("succeeded")
        assert "task=digits-mlp: is taken up again in a moment: OSError: [Errno 24]" in caplog.text
        follower = running.server._followers["digits-mlp"]
        assert not follower.done()  # its topics stand as long as others'


async def test_an_end_that_cannot_be_kept_leaves_the_task_to_the_next_start(
    launch: Launcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails(*_: Any) -> None:
        raise RuntimeError("a bug")

    launch.script = ["dies", "works", "works"]
    with monkeypatch.context() as broken:
        broken.setattr(ServerTask, "recovers", fails)
        broken.setattr(ServerTask, "end", fails)
        async with launch() as running:
            await running.post(descriptor())
            await until(running.server._followers["digits-mlp"].done)
            assert (await published(running)).state is TaskState.POSTED
            await running.post(descriptor(task="second"))
            await running.reach("succeeded", "second")
    async with launch() as running:
        await running.reach("succeeded")
