"""What goes wrong with one task of a region that averages: it is told, waited out, and harms no other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trellis.payloads import Execution, ExecutionState, Phase

REGIONAL = {"aggregation": {"tier": "regional"}}
EXECUTION = "eu-1/gateway/tasks/{}/execution"


def shown(watcher: Any, task: str = "digits") -> Execution | None:
    payload = watcher.retained.get(EXECUTION.format(task))
    return Execution.parse(payload) if payload else None


def waits(watcher: Any, task: str = "digits") -> bool:
    said = shown(watcher, task)
    return said is not None and (said.state, said.phase) == (ExecutionState.IN_PROGRESS, Phase.WAITING)


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


async def test_a_superlinks_trouble_is_told_of_a_task_that_is_just_removed_without_harm(
    world: Any, watching: Any, wait_until: Any, operator: Any
) -> None:
    world.script = ["answers", "answers"]
    async with world.gateway(front=True) as running, watching(world.region) as seen:
        tier = running.gateway.tier
        await running.post(operator.envelope(**REGIONAL))
        await running.post(operator.envelope(task="other", **REGIONAL))
        await wait_until(lambda: waits(seen) and waits(seen, "other"))
        task = tier._tasks.pop("digits")  # as while it is retired
        await tier._tell("no room")
        tier._tasks["digits"] = task
        await wait_until(
            lambda: (said := shown(seen, "other")) and said.reason and said.reason.message == "no room"
        )
