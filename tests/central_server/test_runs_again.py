"""A task that has ended runs again under a higher revision; its first run is kept aside."""

from __future__ import annotations

import json

from tests.central_server.parts import Launcher, Running, descriptor, signed
from trellis.payloads import CentralTask


async def canceled(running: Running) -> None:
    answer = await running.http.post("/v1/tasks/digits-mlp/cancel", content=signed(descriptor().canceled()))
    assert answer.status_code == 200
    await running.reach("canceled")


async def test_a_higher_revision_of_an_ended_task_starts_a_new_run(launch: Launcher) -> None:
    launch.script = ["obeys", "obeys"]
    async with launch() as running:
        await running.post(descriptor())
        await canceled(running)
        other = descriptor(revision=3, train={"rounds": 9, "learning_rate": 0.05})
        answer = await running.post(other)
        assert (answer.status_code, answer.json()["revision"]) == (201, 3)
        view = await running.view()
        assert (view["revision"], view["rounds"], view["history"], view["reason"]) == (3, 9, [], None)
        assert view["state"] != "canceled"
        aside = launch.runs / "digits-mlp.r2"
        assert json.loads((aside / "state.json").read_text())["state"] == "canceled"
        # It is a task like any other: it can be called off, too.
        answer = await running.http.post("/v1/tasks/digits-mlp/cancel", content=signed(other.canceled()))
        assert answer.status_code == 200
        await running.reach("canceled")


async def test_the_retired_run_no_longer_clears_the_topics(launch: Launcher) -> None:
    launch.script = ["obeys", "silent"]
    async with launch() as running:
        await running.post(descriptor())
        await canceled(running)
        assert (await running.post(descriptor(revision=3))).status_code == 201
        async with (
            running.broker.bus("watcher") as bus,
            bus.subscribe("trellis/v1/central/tasks/digits-mlp/state") as messages,
        ):
            state = CentralTask.parse((await anext(messages)).payload)
        assert (state.revision, state.state.ended) == (3, False)


async def test_a_restarted_server_passes_over_what_was_put_aside(launch: Launcher) -> None:
    launch.script = ["obeys", "silent", "silent"]
    async with launch() as running:
        await running.post(descriptor())
        await canceled(running)
        await running.post(descriptor(revision=3))
    async with launch() as running:
        tasks = (await running.http.get("/v1/tasks")).json()["tasks"]
        assert [(task["task"], task["revision"]) for task in tasks] == [("digits-mlp", 3)]


async def test_a_running_task_does_not_change(launch: Launcher) -> None:
    launch.script = ["obeys"]
    async with launch() as running:
        await running.post(descriptor())
        answer = await running.post(descriptor(revision=2))
        assert answer.status_code == 409
        assert "cancel it first" in answer.json()["error"]["message"]
