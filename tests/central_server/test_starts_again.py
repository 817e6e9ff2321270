"""The same command starts the server again, whatever has become of its task meanwhile."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.central_server.parts import Launcher, Running, descriptor, signed
from trellis.errors import Refused
from trellis.payloads import Round, RoundPhase

CANCEL = "/v1/tasks/digits-mlp/cancel"
NOW = datetime.now(UTC)


async def test_after_its_task_was_called_off(launch: Launcher, caplog: pytest.LogCaptureFixture) -> None:
    launch.script = ["obeys"]
    file = signed(descriptor())
    async with launch(task=file) as running:
        await running.reach("gathering")  # so that the script's first part is this task's
        await running.http.post(CANCEL, content=signed(descriptor().canceled()))
        await running.reach("canceled")
        await running.post(descriptor(task="other"))
    async with launch(task=file) as running:
        view = await running.view()
        assert (view["state"], view["revision"]) == ("canceled", 2)
        assert (await running.view("other"))["state"] == "posted"
    assert "the file given at the start changes nothing, the task stays canceled" in caplog.text


@pytest.mark.parametrize(
    "changes",
    [
        {"train": {"rounds": 9, "learning_rate": 0.05}},
        {"revision": 9, "train": {"rounds": 9, "learning_rate": 0.05}},
    ],
    ids=["the file has changed under the same revision", "the file has changed while the task runs"],
)
async def test_with_a_file_that_has_changed(launch: Launcher, changes: dict[str, Any]) -> None:
    async with launch(task=signed(descriptor())):
        pass
    async with launch(task=signed(descriptor(**changes))) as running:
        view = await running.view()
        assert (view["revision"], view["rounds"]) == (1, 3)


async def test_with_a_next_revision_that_has_expired(launch: Launcher) -> None:
    launch.script = ["works"]
    async with launch(task=signed(descriptor())) as running:
        await running.reach("succeeded")
    old = descriptor(revision=2, issued_at=NOW - timedelta(days=9), expires_at=NOW - timedelta(days=2))
    async with launch(task=signed(old)) as running:
        assert (await running.view())["revision"] == 1


async def test_a_new_task_that_is_refused_ends_the_start(launch: Launcher) -> None:
    old = descriptor(issued_at=NOW - timedelta(days=9), expires_at=NOW - timedelta(days=2))
    with pytest.raises(Refused, match="issue it anew"):
        async with launch(task=signed(old)):
            pytest.fail("the server has started")


async def test_the_rounds_of_an_ended_task_stay_done_and_their_time_stays(launch: Launcher) -> None:
    launch.script = ["works"]
    async with launch() as running:
        await running.post(descriptor())
        await running.reach("succeeded")
        before = await standing(running)
        assert before.phase is RoundPhase.DONE
    async with launch() as running:
        after = await standing(running)
        assert (after.phase, after.round, after.rounds) == (RoundPhase.DONE, 3, 3)
        assert (after.selected, after.replied, after.failed) == (1, 1, 0)
        assert after.loss == pytest.approx(1 / 3)
        assert after.ts == (await running.view())["since"]
        assert await standing(running) == after


async def test_the_rounds_of_a_task_that_goes_on_gather_and_their_time_stays(launch: Launcher) -> None:
    async with launch() as running:
        await running.post(descriptor())
    async with launch() as running:
        first = await standing(running)
        assert (first.phase, first.round) == (RoundPhase.GATHERING, 0)
        assert await standing(running) == first


async def standing(running: Running) -> Round:
    return Round.model_validate((await running.http.get("/v1/tasks/digits-mlp/round")).json())
