"""A gateway takes tasks, copies rounds and shows devices: on a broker in memory, with its real HTTP API."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from trellis.descriptor import parse_json
from trellis.envelope import Envelope, sign
from trellis.payloads import CentralTask, ExecutionState, TaskState, now_ms
from trellis.signing_key import SigningKey

DESCRIPTOR, STATUS, ROUND = (f"eu-1/tasks/digits/{what}" for what in ("descriptor", "status", "round"))
CENTRAL_ROUND, CENTRAL_STATE = "central/tasks/digits/round", "central/tasks/digits/state"
CAM = "eu-1/devices/cam-7"


async def test_a_posted_task_is_published_retained_and_verifiable(
    world: Any, watching: Any, wait_until: Any, operator: Any
) -> None:
    async with world.gateway() as running, watching(world.region) as seen:
        code, body = await running.post(operator.envelope())
        assert (code, body) == (201, {"task": "digits", "revision": 1, "desired": "run", "changed": True})
        await wait_until(lambda: DESCRIPTOR in seen.retained and STATUS in seen.retained)
        envelope = Envelope.parse(seen.retained[DESCRIPTOR])
        operator.keyring.verify(envelope)
        assert parse_json(envelope.payload).task == "digits"
        async with watching(world.region, "late") as late:  # retained: one that comes later has it too
            await wait_until(lambda: late.retained.get(DESCRIPTOR) == seen.retained[DESCRIPTOR])


async def test_posting_twice_publishes_once(
    world: Any, watching: Any, wait_until: Any, operator: Any
) -> None:
    async with world.gateway() as running, watching(world.region) as seen:
        assert (await running.post(operator.envelope()))[0] == 201
        code, body = await running.post(operator.envelope())
        assert (code, body["changed"]) == (200, False)
        assert (await running.post(operator.envelope(task="marker")))[0] == 201
        await wait_until(lambda: "eu-1/tasks/marker/descriptor" in seen.retained)
        assert [topic for topic, _ in seen.heard].count(DESCRIPTOR) == 1


async def test_refusals_are_answered_and_shown_on_the_task(
    world: Any, watching: Any, wait_until: Any, operator: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("regional_gateway.relay.NOTE_EVERY", timedelta(0))
    async with world.gateway() as running, watching(world.region) as seen:
        await running.post(operator.envelope(revision=2))
        code, body = await running.post(operator.envelope(revision=1))
        assert (code, body["error"]["code"]) == (409, "revision")
        await wait_until(lambda: (said := seen.status()) and said.verdict and said.verdict.code == "revision")
        # What is known already is no fault: it takes the note away.
        assert (await running.post(operator.envelope(revision=2)))[0] == 200
        await wait_until(lambda: (said := seen.status()) and said.verdict is None)
        other = operator.envelope(revision=2, train={"rounds": 9, "learning_rate": 0.1})
        code, body = await running.post(other)
        assert (code, body["error"]["code"]) == (409, "conflict")
        stranger = sign(operator.descriptor(revision=3).to_json(), SigningKey.generate())
        code, body = await running.post(stranger.to_bytes())
        assert (code, body["error"]["code"]) == (403, "untrusted")
        await wait_until(
            lambda: (said := seen.status()) and said.verdict and said.verdict.code == "untrusted"
        )
        assert (await running.http.get("/v1/tasks")).json()["tasks"][0]["verdict"]["code"] == "untrusted"
        code, body = await running.post(operator.descriptor().to_json().encode())
        assert (code, body["error"]["code"]) == (400, "invalid")
        assert (await running.http.get("/v1/tasks/nothing")).status_code == 404
        assert (await running.http.post("/v1/tasks", content=b"x" * 300_000)).status_code == 400


async def test_rounds_are_copied_word_for_word(
    world: Any, watching: Any, wait_until: Any, operator: Any, say: Any
) -> None:
    async with world.gateway() as running, watching(world.region) as seen:
        await running.post(operator.envelope())
        payloads = [say.round(1), say.round(2).replace(b'"round"', b'"new_field":1,"round"'), say.round(3)]
        for payload in payloads:
            await seen.publish(CENTRAL_ROUND, payload)
        await wait_until(lambda: seen.retained.get(ROUND) == payloads[-1])
        assert [payload for topic, payload in seen.heard if topic == ROUND] == payloads
        (listed,) = (await running.http.get("/v1/tasks")).json()["tasks"]
        # It is training round 3: two are finished.
        assert (listed["round"], listed["rounds"], listed["elapsed_s"] < 60) == (2, 3, True)


async def test_a_round_that_came_before_the_task_is_copied_with_it(
    world: Any, watching: Any, wait_until: Any, operator: Any, say: Any
) -> None:
    async with world.gateway() as running, watching(world.region) as seen:
        await seen.publish(CENTRAL_ROUND, say.round(1))
        await seen.publish(CENTRAL_STATE, say.central(TaskState.GATHERING))
        await wait_until(lambda: running.gateway.central_revision("digits"))
        assert ROUND not in seen.retained  # no business of this region yet
        await running.post(operator.envelope())
        await wait_until(lambda: seen.retained.get(ROUND) == round_copy(seen))
        await wait_until(lambda: (said := seen.status()) and said.central is TaskState.GATHERING)


def round_copy(watcher: Any) -> bytes:
    payload: bytes = watcher.retained[CENTRAL_ROUND]
    return payload


async def test_the_state_at_the_centre_is_mirrored_unless_it_is_an_earlier_revision(
    world: Any, watching: Any, wait_until: Any, operator: Any, say: Any
) -> None:
    async with world.gateway() as running, watching(world.region) as seen:
        await running.post(operator.envelope())
        await seen.publish(CENTRAL_STATE, say.central(TaskState.SUCCEEDED))
        await wait_until(lambda: (said := seen.status()) and said.central is TaskState.SUCCEEDED)
        await running.post(operator.envelope(revision=2))
        await wait_until(lambda: (said := seen.status()) and said.revision == 2)
        assert seen.status().central is None
        assert (await running.http.get("/v1/tasks/digits/state")).status_code == 404
        await seen.publish(CENTRAL_STATE, say.central(TaskState.RUNNING, revision=2))
        await wait_until(lambda: (said := seen.status()) and said.central is TaskState.RUNNING)
        state = CentralTask.parse((await running.http.get("/v1/tasks/digits/state")).content)
        assert (state.revision, state.state) == (2, TaskState.RUNNING)


async def test_devices_and_executions_are_shown(
    world: Any, watching: Any, wait_until: Any, operator: Any, say: Any
) -> None:
    async with world.gateway() as running, watching(world.region) as seen:
        await running.post(operator.envelope())
        await seen.publish(f"{CAM}/state", say.online(since=3))
        await seen.publish(f"{CAM}/tasks/digits/execution", say.execution(ExecutionState.IN_PROGRESS, 1))
        await seen.publish(
            "eu-1/devices/cam-8/tasks/digits/execution", say.execution(ExecutionState.REJECTED, 1)
        )
        await seen.publish(f"{CAM}/info", b"{broken")
        due = {ExecutionState.IN_PROGRESS: 1, ExecutionState.REJECTED: 1}
        await wait_until(lambda: (said := seen.status()) and said.executions == due)
        shown = (await running.http.get("/v1/tasks/digits")).json()
        assert shown["executions"] == {"IN_PROGRESS": 1, "REJECTED": 1}
        assert [(one["device"], one["execution"]["state"]) for one in shown["devices"]] == [
            ("cam-7", "IN_PROGRESS"),
            ("cam-8", "REJECTED"),
        ]
        assert shown["descriptor"]["model"] == {"name": "mlp"}
        cam, other = (await running.http.get("/v1/devices")).json()["devices"]
        assert (cam["state"], cam["since"], cam["task"], cam["phase"]) == ("online", 3, "digits", "waiting")
        assert (other["state"], other["task"]) == ("offline", None)
        health = (await running.http.get("/healthz")).json()
        assert (health["status"], health["region"], health["tasks"], health["devices"]) == (
            "ok",
            "eu-1",
            1,
            2,
        )
        assert abs(health["ts"] - now_ms()) < 60_000


async def test_an_expired_task_is_not_taken(world: Any, operator: Any) -> None:
    past = datetime.now(UTC) - timedelta(days=2)
    window = {"issued_at": past.isoformat(), "expires_at": (past + timedelta(days=1)).isoformat()}
    async with world.gateway() as running:
        code, body = await running.post(operator.envelope(**window))
        assert (code, body["error"]["code"]) == (403, "expired")
        assert "sign it again" in body["error"]["message"]
