"""The same command starts the server again, whatever has become of its task meanwhile."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.central_server.parts import Launcher, descriptor, signed
from trellis.errors import Refused

CANCEL = "/v1/tasks/digits-mlp/cancel"
NOW = datetime.now(UTC)


async def test_after_its_task_was_called_off(launch: Launcher, caplog: pytest.LogCaptureFixture) -> None:
    launch.script = ["obeys"]
    file = signed(descriptor())
    async with launch(task=file) as running:
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
