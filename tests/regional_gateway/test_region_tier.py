# ruff: noqa: PLR0917 - fixtures are parameters, which pytest passes by name
"""A gateway that averages its region's updates: brokers in memory, stand-ins for SuperLink and app."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from trellis.envelope import Envelope
from trellis.payloads import Execution, ExecutionState, Phase, Round, RoundPhase, TaskState

REGIONAL = {"aggregation": {"tier": "regional"}}
EXECUTION = "eu-1/gateway/tasks/digits/execution"
DESCRIPTOR, ROUND = (f"eu-1/tasks/digits/{what}" for what in ("descriptor", "round"))
CENTRAL_ROUND, CENTRAL_STATE = "central/tasks/digits/round", "central/tasks/digits/state"


def shown(watcher: Any) -> Execution | None:
    payload = watcher.retained.get(EXECUTION)
    return Execution.parse(payload) if payload else None


def is_in(watcher: Any, state: ExecutionState, phase: Phase | None = None) -> bool:
    execution = shown(watcher)
    return execution is not None and (execution.state, execution.phase) == (state, phase)


def round_here(watcher: Any) -> Round:
    return Round.parse(watcher.retained[ROUND])


async def test_without_a_front_a_task_that_averages_here_is_refused_and_its_cancellation_is_not(
    world: Any, operator: Any
) -> None:
    async with world.gateway() as running:
        code, body = await running.post(operator.envelope(**REGIONAL))
        assert (code, body["error"]["code"]) == (403, "aggregation")
        assert "--front-port" in body["error"]["message"]
        assert (await running.post(operator.envelope(revision=2, desired="canceled", **REGIONAL)))[0] == 201
        apart = {"aggregation": {"tier": "regional", "regions": {"eu-1": {"tier": "central"}}}}
        assert (await running.post(operator.envelope(task="apart", **apart)))[0] == 201


async def test_a_regions_task_from_its_posting_to_its_end(
    world: Any, watching: Any, wait_until: Any, operator: Any, say: Any
) -> None:
    world.script = ["answers"]
    async with world.gateway(front=True) as running, watching(world.region) as seen:
        health = (await running.http.get("/healthz")).json()
        front = health["front"]
        assert (health["status"], health["superlink"]) == ("ok", "idle")
        assert not world.superlinks
        async with httpx.AsyncClient(base_url=f"http://{front}", trust_env=False) as devices:
            assert (await devices.post("/v1/fleet/pull-messages")).status_code == 503
        await running.post(operator.envelope(**REGIONAL))
        await wait_until(lambda: is_in(seen, ExecutionState.IN_PROGRESS, Phase.WAITING))
        assert Envelope.parse(seen.retained[DESCRIPTOR]).front == front
        assert (await running.http.get("/healthz")).json()["superlink"] == "running"
        brief = json.loads((world.folder / "eu-1/tasks/digits/r1/brief.json").read_text())
        above = {"address": "127.0.0.1:8000", "ca": None, "cert": None, "key": None}
        assert (brief["region"], brief["above"] | above) == ("eu-1", brief["above"])

        node = world.folder / "eu-1/tasks/digits/flower"
        node.mkdir()  # where a real app keeps its node's key

        await seen.publish(CENTRAL_ROUND, say.round(1))
        await wait_until(lambda: is_in(seen, ExecutionState.IN_PROGRESS, Phase.UPLOADED))
        said = shown(seen)
        assert said is not None
        assert said.flower is not None
        assert (said.round, said.flower.nonce, said.flower.message_id) == (1, "n", "m1")
        phases = [Execution.parse(payload).phase for topic, payload in seen.heard if topic == EXECUTION]
        assert phases[-3:] == [Phase.ASKED, Phase.TRAINING, Phase.UPLOADED]
        assert round_here(seen).phase is RoundPhase.TRAIN
        assert seen.retained[ROUND] != seen.retained[CENTRAL_ROUND]  # its own, and no copy
        view = (await running.http.get("/v1/tasks/digits")).json()
        assert (view["tier"], view["execution"]["phase"]) == ("regional", "uploaded")
        assert [record["round"] for record in view["history"]] == [1]
        assert (await running.http.get("/v1/tasks/digits/round")).content == seen.retained[ROUND]

        await seen.publish(CENTRAL_STATE, say.central(TaskState.SUCCEEDED))
        await wait_until(lambda: is_in(seen, ExecutionState.SUCCEEDED))
        await wait_until(world.superlinks[0].died.is_set)
        assert len(world.superlinks[0].runs) == 1
        await wait_until(lambda: not node.exists())


async def test_a_gateway_that_comes_back_goes_on_as_the_same_node(
    world: Any, watching: Any, wait_until: Any, operator: Any, say: Any
) -> None:
    world.script = ["crashes", "answers", "answers"]
    async with watching(world.region) as seen:
        async with world.gateway(front=True) as running:
            await running.post(operator.envelope(**REGIONAL))
            # The first app dies in the middle of its reply; the next one's node is the same.
            # It shows for a moment: the next query takes its place.
            await wait_until(lambda: any(t == EXECUTION and b'"m1"' in p for t, p in seen.heard))
        before = shown(seen)
        assert before is not None
        async with world.gateway(front=True):
            await wait_until(
                lambda: (said := shown(seen)) and said.attempt == 2 and said.phase is Phase.WAITING
            )
            after = shown(seen)
            assert after is not None
            assert before.flower is not None
            assert after.flower is not None
            assert (after.flower.node_id, after.version > before.version) == (7, True)
            await seen.publish(CENTRAL_STATE, say.central(TaskState.FAILED))
            await wait_until(lambda: is_in(seen, ExecutionState.FAILED))
        async with world.gateway(front=True) as running:  # it has ended: nothing begins again
            await running.post(operator.envelope(task="marker"))
            await wait_until(lambda: "eu-1/tasks/marker/descriptor" in seen.retained)
            assert is_in(seen, ExecutionState.FAILED)
    assert len(world.superlinks) == 2


async def test_a_cancellation_ends_it_with_its_revision(
    world: Any, watching: Any, wait_until: Any, operator: Any
) -> None:
    world.script = ["answers"]
    async with world.gateway(front=True) as running, watching(world.region) as seen:
        await running.post(operator.envelope(**REGIONAL))
        await wait_until(lambda: is_in(seen, ExecutionState.IN_PROGRESS, Phase.WAITING))
        await running.post(operator.envelope(revision=2, desired="canceled", **REGIONAL))
        await wait_until(lambda: is_in(seen, ExecutionState.CANCELED))
        said = shown(seen)
        assert said is not None
        assert said.reason is not None
        assert (said.revision, said.reason.code) == (2, "canceled")
        assert "revision 2" in said.reason.message


@pytest.mark.parametrize(
    ("script", "due"),
    [(["dies"] * 4, ("app", "4 ServerApps in a row")), (["fails"], ("failed", "not enough devices"))],
)
async def test_an_app_that_fails_fails_its_task_and_the_gateway_goes_on(
    world: Any, watching: Any, wait_until: Any, operator: Any, script: list[str], due: tuple[str, str]
) -> None:
    world.script = script
    async with world.gateway(front=True) as running, watching(world.region) as seen:
        await running.post(operator.envelope(**REGIONAL))
        await wait_until(lambda: is_in(seen, ExecutionState.FAILED))
        said = shown(seen)
        assert said is not None
        assert said.reason is not None
        assert said.reason.code == due[0]
        assert due[1] in said.reason.message
        assert (await running.post(operator.envelope(task="other")))[0] == 201


async def test_a_task_that_expires_is_timed_out(
    world: Any, watching: Any, wait_until: Any, operator: Any
) -> None:
    world.script = ["answers"]
    async with world.gateway(front=True) as running, watching(world.region) as seen:
        soon = (datetime.now(UTC) + timedelta(seconds=4)).isoformat()
        await running.post(operator.envelope(expires_at=soon, **REGIONAL))
        await wait_until(lambda: is_in(seen, ExecutionState.TIMED_OUT))


async def test_with_two_brokers_the_regions_part_shows_above_and_its_devices_part_does_not(
    world: Any, watching: Any, wait_until: Any, operator: Any, say: Any
) -> None:
    world.two, world.script = True, ["answers"]
    cam = "eu-1/devices/cam-7/tasks/{}/execution"
    async with (
        world.gateway(front=True) as running,
        watching(world.region) as here,
        watching(world.parent) as above,
    ):
        await running.post(operator.envelope(**REGIONAL))
        await running.post(operator.envelope(task="relayed"))
        await above.publish(CENTRAL_ROUND, say.round(1))
        for seen in (here, above):
            await wait_until(lambda seen=seen: is_in(seen, ExecutionState.IN_PROGRESS, Phase.UPLOADED))
            await wait_until(lambda seen=seen: ROUND in seen.retained)
        for task in ("digits", "relayed"):
            await here.publish(cam.format(task), say.execution(ExecutionState.QUEUED))
        await wait_until(lambda: cam.format("relayed") in above.retained)
        assert cam.format("digits") not in above.retained
        assert DESCRIPTOR not in above.retained


async def test_a_tasks_topics_and_folder_are_cleared_after_its_end(
    world: Any, watching: Any, wait_until: Any, operator: Any, say: Any
) -> None:
    world.keep_hours, world.script = 1.0 / 3600, ["answers"]
    folder: Path = world.folder / "eu-1/tasks/digits"
    async with world.gateway(front=True) as running, watching(world.region) as seen:
        await running.post(operator.envelope(**REGIONAL))
        await seen.publish(CENTRAL_ROUND, say.round(1))
        await wait_until(lambda: is_in(seen, ExecutionState.IN_PROGRESS, Phase.UPLOADED))
        await seen.publish(CENTRAL_STATE, say.central(TaskState.SUCCEEDED))
        await wait_until(lambda: seen.retained.get(EXECUTION) == b"")
        await wait_until(lambda: seen.retained.get(ROUND) == b"" and seen.retained.get(DESCRIPTOR) == b"")
        await wait_until(lambda: [path.name for path in folder.iterdir()] == ["execution.json"])


async def test_the_backchannel_refuses_what_the_region_does_not_average(world: Any, wait_until: Any) -> None:
    world.script = ["answers"]
    async with world.gateway(front=True) as running:
        environment = running.gateway.tier._host._environment
        headers = {"authorization": f"Bearer {environment['TRELLIS_BACKCHANNEL_TOKEN']}"}
        async with httpx.AsyncClient(base_url=environment["TRELLIS_BACKCHANNEL"], trust_env=False) as http:
            answer = await http.get("/app/digits/fleet", headers=headers)
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "unknown")
            assert (await http.get("/app/digits/fleet")).status_code == 401
        await asyncio.sleep(0)


async def test_an_app_is_told_while_nothing_can_be_heard_of_its_members(
    world: Any, watching: Any, wait_until: Any, operator: Any
) -> None:
    world.script = ["answers"]
    async with world.gateway(front=True) as running, watching(world.region) as seen:
        await running.post(operator.envelope(**REGIONAL))
        await wait_until(lambda: is_in(seen, ExecutionState.IN_PROGRESS, Phase.WAITING))
        fleet = running.gateway.tier.find("digits").fleet
        assert not fleet.view.blind
        world.region.stop()
        await wait_until(lambda: fleet.view.blind)
        world.region.start()
        await wait_until(lambda: not fleet.view.blind)
