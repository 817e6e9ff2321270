"""The rounds of tasks stand on disk: a server holds none in memory, and reads them when it is asked."""

from __future__ import annotations

import gc
import shutil
from typing import Any

import pytest

from central_server.store import METRICS
from tests.central_server.parts import Launcher, Running, descriptor, until
from trellis.flower.backchannel import Outcome, RoundRecord
from trellis.payloads import Round

OUTCOMES = [
    {"region": "eu-1", "device": f"cam-{number}", "phase": "train", "outcome": "replied", "samples": 10}
    for number in range(20)
]


def held() -> int:
    gc.collect()
    return sum(type(thing) in {RoundRecord, Outcome} for thing in gc.get_objects())


async def finish_rounds(running: Running, numbers: range) -> None:
    async with running.backchannel as app:
        for number in numbers:
            record = {"round": number, "loss": 1 / number, "outcomes": OUTCOMES}
            assert (await app.post("/app/digits-mlp/record", json=record)).status_code == 200


async def shown(running: Running) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await running.view())["history"]
    return found


async def test_a_server_shows_all_rounds_and_holds_none(launch: Launcher) -> None:
    before = held()
    launch.script = ["deaf"] * 2
    async with launch() as running:
        await running.post(descriptor(train={"rounds": 30, "learning_rate": 0.05}))
        await until(lambda: running.server._tasks.find("digits-mlp").runs.app)
        await finish_rounds(running, range(1, 21))
        assert held() - before < 50  # of 420
        rounds = await shown(running)
        assert [one["round"] for one in rounds] == list(range(1, 21))
        assert rounds[0]["outcomes"][19]["device"] == "cam-19"
    async with launch() as running:
        assert held() - before < 50
        assert await shown(running) == rounds
        await until(lambda: running.server._tasks.find("digits-mlp").runs.app)
        # The last ones again, as an app does that resumes, or that goes on from an elder checkpoint.
        await finish_rounds(running, range(18, 20))
        assert (await running.view())["metrics"]["loss"] == 1 / 20
        await finish_rounds(running, range(20, 22))
        assert [one["round"] for one in await shown(running)] == list(range(1, 22))
        assert (running.runs / "digits-mlp" / METRICS).read_bytes().count(b"\n") == 21
        listed = (await running.http.get("/v1/tasks")).json()["tasks"]
        assert [one["round"] for one in listed[0]["history"]] == [21]


async def test_of_an_ended_task_no_round_is_read_before_somebody_asks(
    launch: Launcher, caplog: pytest.LogCaptureFixture
) -> None:
    launch.script = ["works"]
    async with launch() as running:
        await running.post(descriptor())
        await running.reach("succeeded")
        rounds = await shown(running)
        standing = (await running.http.get("/v1/tasks/digits-mlp/round")).content
    metrics, aside = launch.runs / "digits-mlp" / METRICS, launch.runs / "aside.jsonl"
    shutil.move(metrics, aside)
    metrics.symlink_to("/proc/self/mem")  # a file that no read gets anything from
    async with launch() as running:
        state = (await running.http.get("/v1/tasks/digits-mlp/state")).json()
        assert state["state"] == "succeeded"
        answer = await running.http.get("/v1/tasks/digits-mlp")
        assert answer.status_code == 503
        assert f"{METRICS} cannot be read: " in answer.json()["error"]["message"]
        listed = (await running.http.get("/v1/tasks")).json()["tasks"]
        assert [(one["round"], one["history"]) for one in listed] == [(3, [])]
        assert "listed without its last round" in caplog.text
        metrics.unlink()
        shutil.move(aside, metrics)
        assert await shown(running) == rounds
        again = Round.parse((await running.http.get("/v1/tasks/digits-mlp/round")).content)
        assert (again.phase, again.round, again.loss) == (Round.parse(standing).phase, 3, 1 / 3)
