"""A task's folder that cannot be written stops that task alone, and only as long as it cannot.

A folder in a file's place refuses the write in the kernel, whoever we are: root passes over permissions.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from central_server.store import REPORT, STATE, SUMMARY
from tests.central_server.parts import Launcher, Running, descriptor, signed, until


def obstruct(running: Running, file: str) -> Path:
    obstacle = running.runs / "digits-mlp" / f".{file}.partial"
    obstacle.mkdir()
    return obstacle


async def test_a_task_whose_state_cannot_be_kept_waits_while_others_end(
    launch: Launcher, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    launch.script = ["deaf", "works"]
    async with launch() as running:
        await running.post(descriptor())
        app = await until(lambda: running.server._tasks.find("digits-mlp").runs.app)
        obstacle = obstruct(running, STATE)
        await running.post(descriptor(task="second"))
        launch.script += ["works"] * 50
        app.process.kill()
        # More runs than may fail for a fault of the app's.
        await until(lambda: len(running.superlinks[0].runs) > 7, timeout_s=90)
        assert (await running.view())["state"] == "posted"
        await running.reach("succeeded", "second")
        assert "digits-mlp cannot be written: Is a directory; free space there" in caplog.text
        obstacle.rmdir()
        view = await running.reach("succeeded")
        assert [record["round"] for record in view["history"]] == [1, 2, 3]
        assert "digits-mlp can be written again" in caplog.text


async def test_an_app_whose_word_cannot_be_kept_is_told_to_try_again(launch: Launcher) -> None:
    launch.script = ["deaf"]
    async with launch() as running:
        await running.post(descriptor())
        obstacle = obstruct(running, STATE)
        async with running.backchannel as app:
            for path, body in (
                ("state", {"state": "gathering"}),
                ("record", {"round": 1, "loss": 0.5}),
            ):
                answer = await app.post(f"/app/digits-mlp/{path}", json=body)
                assert answer.status_code == 503
                assert "cannot be written: Is a directory" in answer.json()["error"]["message"]
            view = await running.view()
            assert (view["state"], view["round"], view["history"]) == ("posted", 0, [])
            obstacle.rmdir()
            assert (await app.post("/app/digits-mlp/record", json=body)).status_code == 200
            assert (await running.view())["round"] == 1


async def test_a_task_does_not_end_without_its_summary(launch: Launcher) -> None:
    launch.script = ["deaf"]
    async with launch() as running:
        await running.post(descriptor())
        await until(lambda: running.server._tasks.find("digits-mlp").runs.app)
        obstacle = obstruct(running, REPORT)
        await running.http.post("/v1/tasks/digits-mlp/cancel", content=signed(descriptor().canceled()))
        await until(lambda: running.server._tasks.find("digits-mlp").disk.refusal)
        assert (await running.view())["state"] == "posted"
        obstacle.rmdir()
        await running.reach("canceled")
        assert (running.runs / "digits-mlp" / SUMMARY).is_file()
        assert (running.runs / "digits-mlp" / REPORT).is_file()


async def test_a_task_whose_checkpoints_the_disk_does_not_give_waits_and_can_be_called_off(
    launch: Launcher, caplog: pytest.LogCaptureFixture
) -> None:
    launch.script = ["dies"]
    checkpoints = launch.runs / "digits-mlp" / "checkpoints"
    async with launch() as running:
        await running.post(descriptor())
        checkpoints.mkdir()
        (checkpoints / "round-0002.safetensors").symlink_to("/proc/self/mem")  # gives nothing
        await until(lambda: "round-0002.safetensors'; until then nothing of it goes on" in caplog.text)
        assert len(running.superlinks[0].runs) == 1
        launch.script += ["deaf", "dies"]
        (checkpoints / "round-0001.safetensors").touch()
        await until(lambda: len(running.superlinks[0].runs) == 2)
        app = await until(lambda: running.server._tasks.find("digits-mlp").runs.app)
        (checkpoints / "round-0001.safetensors").unlink()
        app.process.kill()
        await until(lambda: caplog.text.count("until then nothing of it goes on") == 2)
        await running.http.post("/v1/tasks/digits-mlp/cancel", content=signed(descriptor().canceled()))
        await running.reach("canceled")


async def test_a_folder_that_went_away_stops_its_task_alone(launch: Launcher) -> None:
    launch.script = ["deaf", "works"]
    async with launch() as running:
        await running.post(descriptor())
        app = await until(lambda: running.server._tasks.find("digits-mlp").runs.app)
        folder, away = running.runs / "digits-mlp", running.runs / "away.d"
        shutil.move(folder, away)
        app.process.kill()
        await until(lambda: running.server._tasks.find("digits-mlp").disk.refusal)
        shutil.move(away, folder)
        await running.reach("succeeded")


async def test_a_task_that_cannot_be_stored_is_not_taken(launch: Launcher) -> None:
    launch.script = ["works", "works"]
    async with launch() as running:
        await running.post(descriptor())
        before = await running.reach("succeeded")
        obstacle = running.runs / ".digits-mlp.new"
        obstacle.touch()  # a file in a folder's place
        answer = await running.post(descriptor(revision=2))
        assert answer.status_code == 503
        assert "cannot be written: File exists" in answer.json()["error"]["message"]
        assert await running.view() == before
        obstacle.unlink()
        assert (await running.post(descriptor(revision=2))).status_code == 201
        assert (await running.reach("succeeded"))["revision"] == 2
