"""The gateway at work on brokers in memory, with its real HTTP API."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from regional_gateway.brokers import are_one
from trellis.descriptor import parse_json
from trellis.envelope import Envelope, SigningKey, sign
from trellis.errors import ConfigError
from trellis.http.client import ServiceClient
from trellis.http.server import HttpServer, create_app
from trellis.mqtt import Publication
from trellis.payloads import (
    CentralTask,
    Execution,
    ExecutionState,
    Info,
    Phase,
    Presence,
    Round,
    RoundPhase,
    State,
    TaskState,
    TaskStatus,
)

DESCRIPTOR, STATUS, ROUND = (f"eu-1/tasks/digits/{what}" for what in ("descriptor", "status", "round"))
CENTRAL_ROUND, CENTRAL_STATE = "central/tasks/digits/round", "central/tasks/digits/state"
CAM = "eu-1/devices/cam-7"


def round_(number: int, ts: int | None = None) -> bytes:
    stamp = {} if ts is None else {"ts": ts}
    return Round(round=number, rounds=3, phase=RoundPhase.TRAIN, announced=number, **stamp).to_bytes()


def central(state: TaskState, revision: int = 1) -> bytes:
    return CentralTask(task="digits", revision=revision, state=state, since=1, rounds=3).to_bytes()


def execution(state: ExecutionState, version: int) -> bytes:
    return Execution(state=state, version=version, phase=Phase.WAITING).to_bytes()


def status(watcher: Any) -> TaskStatus | None:
    data = watcher.retained.get(STATUS)
    return TaskStatus.parse(data) if data else None


async def post(running: Any, data: bytes) -> tuple[int, dict[str, Any]]:
    answer = await running.http.post("/v1/tasks", content=data)
    return answer.status_code, answer.json()


async def test_a_posted_task_is_published_retained_and_verifiable(
    world: Any, watching: Any, wait_until: Any, operator: Any
) -> None:
    async with world.gateway() as running, watching(world.region) as seen:
        code, body = await post(running, operator.envelope())
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
        assert (await post(running, operator.envelope()))[0] == 201
        code, body = await post(running, operator.envelope())
        assert (code, body["changed"]) == (200, False)
        assert (await post(running, operator.envelope(task="marker")))[0] == 201
        await wait_until(lambda: "eu-1/tasks/marker/descriptor" in seen.retained)
        assert [topic for topic, _ in seen.heard].count(DESCRIPTOR) == 1


async def test_refusals_are_answered_and_shown_on_the_task(
    world: Any, watching: Any, wait_until: Any, operator: Any
) -> None:
    async with world.gateway() as running, watching(world.region) as seen:
        await post(running, operator.envelope(revision=2))
        code, body = await post(running, operator.envelope(revision=1))
        assert (code, body["error"]["code"]) == (409, "revision")
        await wait_until(lambda: (said := status(seen)) and said.verdict and said.verdict.code == "revision")
        other = operator.envelope(revision=2, train={"rounds": 9, "learning_rate": 0.1})
        code, body = await post(running, other)
        assert (code, body["error"]["code"]) == (409, "conflict")
        stranger = sign(operator.descriptor(revision=3).to_json(), SigningKey.generate())
        code, body = await post(running, stranger.to_bytes())
        assert (code, body["error"]["code"]) == (403, "untrusted")
        await wait_until(lambda: (said := status(seen)) and said.verdict and said.verdict.code == "untrusted")
        assert (await running.http.get("/v1/tasks")).json()["tasks"][0]["verdict"]["code"] == "untrusted"
        code, body = await post(running, operator.descriptor().to_json().encode())
        assert (code, body["error"]["code"]) == (400, "invalid")
        assert (await running.http.get("/v1/tasks/nothing")).status_code == 404
        assert (await running.http.post("/v1/tasks", content=b"x" * 300_000)).status_code == 400


async def test_rounds_are_copied_word_for_word(
    world: Any, watching: Any, wait_until: Any, operator: Any
) -> None:
    async with world.gateway() as running, watching(world.region) as seen:
        await post(running, operator.envelope())
        payloads = [round_(1), round_(2).replace(b'"round"', b'"new_field":1,"round"'), round_(3)]
        for payload in payloads:
            await seen.publish(CENTRAL_ROUND, payload)
        await wait_until(lambda: seen.retained.get(ROUND) == payloads[-1])
        assert [payload for topic, payload in seen.heard if topic == ROUND] == payloads


async def test_a_round_that_came_before_the_task_is_copied_with_it(
    world: Any, watching: Any, wait_until: Any, operator: Any
) -> None:
    async with world.gateway() as running, watching(world.region) as seen:
        await seen.publish(CENTRAL_ROUND, round_(1))
        await seen.publish(CENTRAL_STATE, central(TaskState.GATHERING))
        await wait_until(lambda: running.gateway._centre._rounds.state("digits"))
        assert ROUND not in seen.retained  # no business of this region yet
        await post(running, operator.envelope())
        await wait_until(lambda: seen.retained.get(ROUND) == round_copy(seen))
        await wait_until(lambda: (said := status(seen)) and said.central is TaskState.GATHERING)


def round_copy(watcher: Any) -> bytes:
    payload: bytes = watcher.retained[CENTRAL_ROUND]
    return payload


async def test_the_state_at_the_centre_is_mirrored_unless_it_is_an_earlier_revision(
    world: Any, watching: Any, wait_until: Any, operator: Any
) -> None:
    async with world.gateway() as running, watching(world.region) as seen:
        await post(running, operator.envelope())
        await seen.publish(CENTRAL_STATE, central(TaskState.SUCCEEDED))
        await wait_until(lambda: (said := status(seen)) and said.central is TaskState.SUCCEEDED)
        await post(running, operator.envelope(revision=2))
        await wait_until(lambda: (said := status(seen)) and said.revision == 2)
        assert status(seen).central is None
        await seen.publish(CENTRAL_STATE, central(TaskState.RUNNING, revision=2))
        await wait_until(lambda: (said := status(seen)) and said.central is TaskState.RUNNING)


async def test_devices_and_executions_are_shown(
    world: Any, watching: Any, wait_until: Any, operator: Any
) -> None:
    async with world.gateway() as running, watching(world.region) as seen:
        await post(running, operator.envelope())
        await seen.publish(f"{CAM}/state", State(state="online", boot_id="b", since=3).to_bytes())
        await seen.publish(f"{CAM}/tasks/digits/execution", execution(ExecutionState.IN_PROGRESS, 1))
        await seen.publish("eu-1/devices/cam-8/tasks/digits/execution", execution(ExecutionState.REJECTED, 1))
        await seen.publish(f"{CAM}/info", b"{broken")
        due = {ExecutionState.IN_PROGRESS: 1, ExecutionState.REJECTED: 1}
        await wait_until(lambda: (said := status(seen)) and said.executions == due)
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


async def test_a_restarted_gateway_has_all_it_had_even_if_the_broker_lost_it(
    world: Any, watching: Any, wait_until: Any, operator: Any
) -> None:
    async with world.gateway() as running, watching(world.region) as seen:
        await post(running, operator.envelope(revision=2))
        await seen.publish(CENTRAL_STATE, central(TaskState.RUNNING, revision=2))
        await seen.publish(f"{CAM}/tasks/digits/execution", execution(ExecutionState.IN_PROGRESS, 1))
        await wait_until(
            lambda: (
                (said := status(seen)) and said.central and said.executions and DESCRIPTOR in seen.retained
            )
        )
        descriptor = seen.retained[DESCRIPTOR]
    world.region.stop()
    world.region.start()
    async with world.gateway() as running, watching(world.region) as seen:
        await wait_until(lambda: seen.retained.get(DESCRIPTOR) == descriptor)
        await wait_until(lambda: status(seen))
        assert status(seen).central is TaskState.RUNNING
        assert status(seen).executions == {ExecutionState.IN_PROGRESS: 1}
        code, body = await post(running, operator.envelope(revision=1))
        assert (code, body["error"]["code"]) == (409, "revision")


async def test_everything_is_said_again_after_the_broker_restarts(
    world: Any, watching: Any, wait_until: Any, operator: Any
) -> None:
    async with world.gateway() as running:
        async with watching(world.region) as seen:
            await post(running, operator.envelope())
            await seen.publish(CENTRAL_ROUND, round_(2))
            await wait_until(lambda: ROUND in seen.retained and DESCRIPTOR in seen.retained)
        world.region.stop()
        await wait_until(lambda: not running.gateway.connections[0])
        assert (await running.http.get("/healthz")).json()["status"] == "degraded"
        world.region.start()
        async with watching(world.region, "later") as seen:
            await wait_until(
                lambda: {DESCRIPTOR, STATUS, ROUND, "eu-1/gateway/state"} <= seen.retained.keys()
            )
            assert Round.parse(seen.retained[ROUND]).round == 2


async def test_a_task_posted_while_the_broker_is_away_is_published_when_it_is_back(
    world: Any, watching: Any, wait_until: Any, operator: Any
) -> None:
    async with world.gateway() as running:
        world.region.stop()
        await wait_until(lambda: not running.gateway.connections[0])
        assert (await post(running, operator.envelope()))[0] == 201
        world.region.start()
        async with watching(world.region) as seen:
            await wait_until(lambda: DESCRIPTOR in seen.retained)


async def test_the_gateways_own_state_is_born_willed_and_ended(
    world: Any, watching: Any, wait_until: Any
) -> None:
    topic = "eu-1/gateway/state"
    async with watching(world.region) as seen:
        async with world.gateway() as running:
            await wait_until(lambda: topic in seen.retained)
            born = State.parse(seen.retained[topic])
            assert (born.state, born.parent) == (Presence.ONLINE, "central")
            assert born.api == str(running.http.base_url).rstrip("/")
            old = State(state=Presence.OFFLINE, boot_id="an-old-will", since=1)
            await seen.publish(topic, old.to_bytes())
            await wait_until(lambda: State.parse(seen.retained[topic]).boot_id == born.boot_id)
        await wait_until(lambda: State.parse(seen.retained[topic]).state is Presence.OFFLINE)
        assert State.parse(seen.retained[topic]).boot_id == born.boot_id


async def test_the_elder_of_two_gateways_of_a_region_ends_and_says_why(world: Any, wait_until: Any) -> None:
    with pytest.raises(BaseExceptionGroup) as caught:  # noqa: PT012 - the first ends while the second runs
        async with world.gateway() as first:
            async with world.gateway():
                await wait_until(first.task.done)
            await first.task
    assert caught.group_contains(ConfigError, match="another gateway of this region has started")


@pytest.fixture
def two_brokers(world: Any) -> Any:
    world.two = True
    return world


async def test_with_two_brokers_devices_go_up_and_rounds_come_down(
    two_brokers: Any, watching: Any, wait_until: Any, operator: Any
) -> None:
    world = two_brokers
    cam = State(state=Presence.ONLINE, boot_id="b", since=3).to_bytes()
    info = Info(
        version="1", python="3", platform="l", machine="m", cpus=2, memory_mb=3, backends=("torch",)
    ).to_bytes()
    async with world.gateway() as running:
        async with watching(world.region) as low, watching(world.parent) as high:
            await wait_until(lambda: running.gateway.connections[1])
            await post(running, operator.envelope())
            due = {
                f"{CAM}/state": cam,
                f"{CAM}/info": info,
                f"{CAM}/tasks/digits/execution": execution(ExecutionState.QUEUED, 1),
            }
            for topic, payload in due.items():
                await low.publish(topic, payload)
            await wait_until(lambda: due.items() <= high.retained.items())
            await wait_until(lambda: STATUS in high.retained and "eu-1/gateway/state" in high.retained)
            await high.publish(CENTRAL_ROUND, round_(1))
            await wait_until(lambda: low.retained.get(ROUND) == high.retained[CENTRAL_ROUND])
            assert DESCRIPTOR not in high.retained
            assert ROUND not in high.retained
            assert not any(topic.startswith("central/") for topic in low.retained)
        world.parent.stop()
        await wait_until(lambda: not running.gateway.connections[1])
        world.parent.start()
        async with watching(world.parent, "later") as high:
            await wait_until(lambda: due.items() <= high.retained.items())
        async with watching(world.region, "remover") as low, watching(world.parent, "last") as high:
            await low.publish(f"{CAM}/state", b"")
            await wait_until(lambda: high.retained.get(f"{CAM}/state") == b"")


async def test_rounds_go_on_over_http_while_the_parents_broker_is_away(
    two_brokers: Any, watching: Any, wait_until: Any, operator: Any
) -> None:
    world = two_brokers
    now = {"round": 1, "state": "running"}
    asked: list[str] = []
    app = create_app("a central server")

    @app.get("/v1/tasks/digits/round")
    async def round_now() -> Any:
        asked.append("round")
        return json.loads(round_(now["round"]))

    @app.get("/v1/tasks/digits")
    async def task_now() -> Any:
        asked.append("task")
        return {
            "task": "digits",
            "revision": 1,
            "state": now["state"],
            "since": 1,
            "rounds": 3,
            "history": [],
        }

    async with HttpServer(app, host="127.0.0.1", port=0, tls=None) as central_server:
        world.server = central_server.url
        async with world.gateway() as running, watching(world.region) as low, watching(world.parent) as high:
            await wait_until(lambda: running.gateway.connections[1])
            await post(running, operator.envelope())
            await high.publish(CENTRAL_ROUND, round_(1))
            await wait_until(lambda: ROUND in low.retained)
            assert asked == []
            world.parent.stop()
            now["round"] = 2
            await wait_until(lambda: Round.parse(low.retained[ROUND]).round == 2)
            now["state"] = "succeeded"
            await wait_until(lambda: (said := status(low)) and said.central is TaskState.SUCCEEDED)
            world.parent.start()
            await wait_until(lambda: running.gateway.connections[1])


async def test_nobody_is_polled_while_the_parents_broker_is_there(
    world: Any, wait_until: Any, operator: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("regional_gateway.centre.POLL_EVERY_S", 0.01)
    asked: list[str] = []
    app = create_app("a central server")

    @app.get("/{path:path}")
    async def anything(path: str) -> Any:
        asked.append(path)
        return {}

    async with (
        HttpServer(app, host="127.0.0.1", port=0, tls=None) as central_server,
        ServiceClient(central_server.url, tls=None) as client,
        world.gateway() as running,
    ):
        await post(running, operator.envelope())
        asked_by_then: list[int] = []

        def is_due() -> bool:
            asked_by_then.append(len(asked))
            return len(asked_by_then) > 5

        polling = asyncio.create_task(running.gateway._centre.poll(client, is_due))
        await wait_until(lambda: asked)
        polling.cancel()
        assert asked_by_then[:6] == [0] * 6
        assert set(asked) <= {"v1/tasks/digits/round", "v1/tasks/digits"}


@pytest.mark.parametrize("end", ["at the centre", "canceled"])
async def test_the_topics_of_an_old_task_are_cleared(
    world: Any, watching: Any, wait_until: Any, operator: Any, end: str
) -> None:
    world.keep_hours = 0.3 / 3600
    async with watching(world.region) as seen:
        async with world.gateway() as running:
            await post(running, operator.envelope())
            await seen.publish(CENTRAL_ROUND, round_(3))
            await wait_until(lambda: seen.retained.get(ROUND) and seen.retained.get(DESCRIPTOR))
            if end == "canceled":
                await post(running, operator.envelope(revision=2, desired="canceled"))
            else:
                await seen.publish(CENTRAL_STATE, central(TaskState.SUCCEEDED))
            await wait_until(
                lambda: {seen.retained.get(topic) for topic in (DESCRIPTOR, STATUS, ROUND)} == {b""}
            )
            assert (await running.http.get("/v1/tasks")).json() == {"tasks": []}
            assert (await running.http.get("/v1/tasks/digits")).status_code == 404
            # Its old revision must not come again while the envelope is valid.
            revision = 2 if end == "canceled" else 1
            again = operator.envelope(revision=revision, desired="canceled" if end == "canceled" else "run")
            assert (await post(running, again))[0] == 200
        async with world.gateway(), watching(world.region, "later") as later:
            await wait_until(lambda: "eu-1/gateway/state" in later.retained)
            assert not any(topic.startswith("eu-1/tasks/") for topic in later.retained)


async def test_a_running_task_is_not_cleared(
    world: Any, watching: Any, wait_until: Any, operator: Any
) -> None:
    world.keep_hours = 0.0
    async with world.gateway() as running, watching(world.region) as seen:
        await post(running, operator.envelope())
        await post(running, operator.envelope(task="over", revision=1, desired="canceled"))
        await wait_until(lambda: seen.retained.get("eu-1/tasks/over/descriptor") == b"")
        assert seen.retained[DESCRIPTOR] != b""


async def test_an_expired_task_is_not_taken(world: Any, operator: Any) -> None:
    past = datetime.now(UTC) - timedelta(days=2)
    window = {"issued_at": past.isoformat(), "expires_at": (past + timedelta(days=1)).isoformat()}
    async with world.gateway() as running:
        code, body = await post(running, operator.envelope(**window))
        assert (code, body["error"]["code"]) == (403, "expired")
        assert "sign it again" in body["error"]["message"]


async def test_a_flood_of_garbage_stops_nothing(
    world: Any, watching: Any, wait_until: Any, operator: Any
) -> None:
    topics = [
        f"{CAM}/state",
        f"{CAM}/tasks/digits/execution",
        CENTRAL_ROUND,
        CENTRAL_STATE,
        "eu-1/gateway/state",
    ]
    async with world.gateway() as running, watching(world.region) as seen:
        await post(running, operator.envelope())
        for topic in topics:
            for payload in (b"{", b"\xff\xfe", b"[]", b'{"schema":2}', b"x" * 300_000):
                await seen.publish(topic, payload)
        await seen.publish(CENTRAL_ROUND, round_(1))
        await wait_until(lambda: ROUND in seen.retained)
        assert not running.task.done()


async def test_a_will_reaches_the_brokers_as_retained_offline(
    world: Any, watching: Any, wait_until: Any
) -> None:
    wills: list[Publication] = []
    connect = world.connect

    def keep(url: str, client_id: str, *, will: Publication, birth: Any) -> Any:
        wills.append(will)
        return connect(url, client_id, will=will, birth=birth)

    world.connect = keep
    async with world.gateway():
        (will,) = wills
    said = State.parse(will.payload)
    assert (will.topic, will.retain, said.state) == ("trellis/v1/eu-1/gateway/state", True, Presence.OFFLINE)


async def test_one_broker_under_two_names_is_known_as_one() -> None:
    assert await are_one("mqtt://127.0.0.1:1883", "mqtt://localhost")
    assert await are_one("mqtts://localhost:8883", "mqtts://127.0.0.1")
    assert not await are_one("mqtt://127.0.0.1:1883", "mqtt://127.0.0.1:1884")
    assert not await are_one("mqtt://127.0.0.1:1883", "mqtt://192.0.2.1:1883")
