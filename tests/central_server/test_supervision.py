"""Supervision: every task that has not ended has a live ServerApp, whatever dies."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from types import SimpleNamespace

import psutil
import pytest
from members import command_line
from process_superlink import ProcessSuperLink

from tests.central_server.parts import QUICK, Launcher, descriptor, signed, until
from trellis.errors import Unavailable


async def test_a_dead_app_is_followed_by_another_run_within_5_s(launch: Launcher) -> None:
    launch.script = ["one-round", "works"]
    async with launch() as running:
        await running.post(descriptor())
        (first,) = await until(lambda: [*running.superlinks[0].runs.values()])
        await first.wait()
        began = time.monotonic()
        await until(lambda: len(running.superlinks[0].runs) == 2)
        assert time.monotonic() - began < 5
        view = await running.reach("succeeded")
        assert [record["round"] for record in view["history"]] == [1, 2, 3]


async def test_after_three_restarts_without_progress_the_task_fails_with_a_reason(launch: Launcher) -> None:
    launch.script = ["dies"] * 9
    async with launch() as running:
        await running.post(descriptor())
        view = await running.reach("failed")
        assert len(running.superlinks[0].runs) == 4
        assert "4 ServerApps in a row" in view["reason"]["message"]
        assert "its process" in view["reason"]["message"]


async def test_a_finished_round_starts_the_count_anew(launch: Launcher) -> None:
    # The second redoes round 1: no progress. Three restarts in a row without any are allowed.
    launch.script = ["one-round", "dies", "dies", "works"]
    async with launch() as running:
        await running.post(descriptor())
        await running.reach("succeeded")


async def test_an_app_that_never_says_hello_counts_as_dead(launch: Launcher) -> None:
    launch.script = ["silent", "works"]
    async with launch(timing=replace(QUICK, hello_s=1.0)) as running:
        await running.post(descriptor())
        (silent,) = await until(lambda: [*running.superlinks[0].runs])
        running.time_by(QUICK)  # for the good one, which on a busy machine takes its time
        await running.reach("succeeded")
        assert running.superlinks[0].stopped[:1] == [silent]


async def test_two_apps_start_at_a_time_and_who_waits_can_be_called_off(
    launch: Launcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch.script = ["silent", "silent", "works", "works", "works"]
    async with launch() as running:
        for name in ("one", "two", "three", "four"):
            await running.post(descriptor(task=name))
        await until(lambda: len(running.superlinks[0].runs) == 2)
        body = signed(descriptor(task="four").canceled())
        await running.http.post("/v1/tasks/four/cancel", content=body)
        await running.reach("canceled", "four")
        assert len(running.superlinks[0].runs) == 2
        # Their time to say a word is over.
        later = SimpleNamespace(monotonic=lambda: time.monotonic() + QUICK.hello_s)
        monkeypatch.setattr("trellis.tier.supervision.time", later)
        for name in ("one", "two", "three"):
            await running.reach("succeeded", name)
        assert len(running.superlinks[0].runs) == 5


async def test_an_app_that_lives_and_is_stuck_is_followed_by_another(launch: Launcher) -> None:
    launch.script = ["obeys", "works"]
    async with launch() as running:
        await running.post(descriptor())
        app = await until(lambda: running.server._tasks.find("digits-mlp").runs.app)
        await running.reach("gathering")
        app.process.suspend()
        running.time_by(replace(QUICK, beat_s=2.0))
        await until(lambda: len(running.superlinks[0].runs) == 2)
        running.time_by(QUICK)  # for the good one, which on a busy machine takes its time
        await running.reach("succeeded")
        assert not app.alive
        assert len(running.superlinks[0].runs) == 2


async def test_an_app_that_polls_and_says_nothing_else_is_not_stuck(launch: Launcher) -> None:
    launch.script = ["obeys"]
    async with launch(timing=replace(QUICK, beat_s=6.0)) as running:
        await running.post(descriptor())
        app = await until(lambda: running.server._tasks.find("digits-mlp").runs.app)
        for _ in range(90):  # 9 s
            assert app.alive
            await asyncio.sleep(0.1)
        assert len(running.superlinks[0].runs) == 1


async def test_a_task_is_called_off_while_the_superlink_does_not_start(
    launch: Launcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_superlink = launch._superlink

    @contextlib.asynccontextmanager
    async def starts_once(environment: dict[str, str]) -> AsyncIterator[ProcessSuperLink]:
        if launch.superlinks:
            raise Unavailable("it does not start: no memory")
        async with open_superlink(environment) as superlink:
            yield superlink

    monkeypatch.setattr(launch, "_superlink", starts_once)
    launch.script = ["obeys"]
    async with launch() as running:
        await running.post(descriptor())
        await until(lambda: running.server._tasks.find("digits-mlp").runs.app)
        running.superlinks[0].died.set()
        await until(lambda: "no memory" in (running.server._host.keeper.trouble or ""))
        await running.http.post("/v1/tasks/digits-mlp/cancel", content=signed(descriptor().canceled()))
        view = await running.reach("canceled")
        assert view["reason"]["message"] == (
            "called off by the operator while the SuperLink was down: it does not start: no memory"
        )


async def test_an_app_deaf_to_cancellation_is_stopped(launch: Launcher) -> None:
    launch.script = ["deaf"]
    async with launch() as running:
        await running.post(descriptor())
        task = running.server._tasks.find("digits-mlp")
        app = await until(lambda: task.runs.app)
        body = signed(descriptor().canceled())
        await running.http.post("/v1/tasks/digits-mlp/cancel", content=body)
        await running.reach("canceled")
        assert not app.alive
        assert len(running.superlinks[0].runs) == 1


async def test_a_superlink_that_dies_is_followed_by_another_with_all_tasks(launch: Launcher) -> None:
    launch.script = ["deaf", "deaf", "works", "works"]
    async with launch() as running:
        await running.post(descriptor())
        await running.post(descriptor(task="second"))
        tasks = [running.server._tasks.find(name) for name in ("digits-mlp", "second")]
        await until(lambda: all(task.runs.app for task in tasks))
        running.superlinks[0].clears_up = cleared = asyncio.Event()
        running.superlinks[0].died.set()

        async def says_so() -> bool:
            said = (await running.view())["reason"]
            return bool(said) and said["code"] == "recovering" and "the SuperLink ended" in said["message"]

        await until(says_so)
        cleared.set()
        await until(lambda: len(running.superlinks) == 2)
        await running.reach("succeeded")
        await running.reach("succeeded", "second")


async def test_a_new_server_takes_up_what_an_earlier_one_left(launch: Launcher) -> None:
    launch.script = ["one-round"]
    async with launch() as running:
        await running.post(descriptor())

        async def first_round() -> bool:
            return (await running.view())["round"] == 1

        await until(first_round)
    launch.script = ["works"]
    async with launch() as running:
        view = await running.reach("succeeded")
        assert [record["round"] for record in view["history"]] == [1, 2, 3]
    async with launch() as running:
        view = await running.view()
        assert (view["state"], view["round"]) == ("succeeded", 3)
        assert running.superlinks[-1].runs == {}


async def test_the_topics_of_an_ended_task_are_cleared_in_time(launch: Launcher) -> None:
    launch.script = ["works"]
    async with launch(timing=replace(QUICK, retention_s=0.5)) as running:
        await running.post(descriptor())
        await running.reach("succeeded")

        def kept() -> list[str]:
            return [topic for topic in running.broker._retained if "digits-mlp" in topic]

        assert await until(lambda: not kept())
        assert (await running.view())["state"] == "succeeded"


async def test_the_service_leaves_no_process(launch: Launcher) -> None:
    launch.script = ["deaf"]
    async with launch() as running:
        await running.post(descriptor())
        await until(lambda: running.server._tasks.find("digits-mlp").runs.app)
        began = time.monotonic()
    assert time.monotonic() - began < 15, "the app sleeps for 60 s"
    left = [command_line(child) for child in psutil.Process(os.getpid()).children()]
    assert not [line for line in left if "stand_in_app.py" in line]
