"""A gateway from its birth to its end, and a task's topics to theirs."""

from __future__ import annotations

from typing import Any

import pytest

from trellis.errors import Displaced
from trellis.mqtt import Publication
from trellis.payloads import ExecutionState, Presence, State, TaskState

DESCRIPTOR, STATUS, ROUND = (f"eu-1/tasks/digits/{what}" for what in ("descriptor", "status", "round"))
CENTRAL_ROUND, CENTRAL_STATE = "central/tasks/digits/round", "central/tasks/digits/state"
CAM = "eu-1/devices/cam-7"


async def test_a_restarted_gateway_has_all_it_had_even_if_the_broker_lost_it(
    world: Any, watching: Any, wait_until: Any, operator: Any, say: Any
) -> None:
    async with world.gateway() as running, watching(world.region) as seen:
        await running.post(operator.envelope(revision=2))
        await seen.publish(CENTRAL_STATE, say.central(TaskState.RUNNING, revision=2))
        await seen.publish(f"{CAM}/tasks/digits/execution", say.execution(ExecutionState.IN_PROGRESS, 1))
        await wait_until(
            lambda: (
                (said := seen.status()) and said.central and said.executions and DESCRIPTOR in seen.retained
            )
        )
        descriptor = seen.retained[DESCRIPTOR]
    world.region.stop()
    world.region.start()
    async with world.gateway() as running, watching(world.region) as seen:
        await wait_until(lambda: seen.retained.get(DESCRIPTOR) == descriptor)
        await wait_until(seen.status)
        assert seen.status().central is TaskState.RUNNING
        assert seen.status().executions == {ExecutionState.IN_PROGRESS: 1}
        code, body = await running.post(operator.envelope(revision=1))
        assert (code, body["error"]["code"]) == (409, "revision")


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
    assert caught.group_contains(Displaced, match="another gateway of this region has started")


@pytest.mark.parametrize("end", ["at the centre", "canceled"])
async def test_the_topics_of_an_old_task_are_cleared(
    *, world: Any, watching: Any, wait_until: Any, operator: Any, end: str, say: Any
) -> None:
    world.keep_hours = 0.3 / 3600
    async with watching(world.region) as seen:
        async with world.gateway() as running:
            await running.post(operator.envelope())
            await seen.publish(CENTRAL_ROUND, say.round(3))
            await wait_until(lambda: seen.retained.get(ROUND) and seen.retained.get(DESCRIPTOR))
            if end == "canceled":
                await running.post(operator.envelope(revision=2, desired="canceled"))
            else:
                await seen.publish(CENTRAL_STATE, say.central(TaskState.SUCCEEDED))
            await wait_until(
                lambda: {seen.retained.get(topic) for topic in (DESCRIPTOR, STATUS, ROUND)} == {b""}
            )
            assert (await running.http.get("/v1/tasks")).json() == {"tasks": []}
            assert (await running.http.get("/v1/tasks/digits")).status_code == 404
            # Its old revision must not come again while the envelope is valid.
            revision = 2 if end == "canceled" else 1
            again = operator.envelope(revision=revision, desired="canceled" if end == "canceled" else "run")
            assert (await running.post(again))[0] == 200
        async with world.gateway(), watching(world.region, "later") as later:
            await wait_until(lambda: "eu-1/gateway/state" in later.retained)
            assert not any(topic.startswith("eu-1/tasks/") for topic in later.retained)


async def test_a_task_whose_server_has_vanished_is_cleared_after_its_window(
    *,
    world: Any,
    watching: Any,
    wait_until: Any,
    operator: Any,
    say: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world.keep_hours = 0.0
    looks: list[int] = []

    def at(now_ms: int) -> None:
        looks.clear()
        monkeypatch.setattr("regional_gateway.sweeper.now_ms", lambda: looks.append(now_ms) or now_ms)

    async with world.gateway() as running, watching(world.region) as seen:
        await running.post(operator.envelope())
        await seen.publish(CENTRAL_STATE, say.central(TaskState.RUNNING))  # and nothing more is said of it
        await wait_until(lambda: running.gateway.ledger.get("digits").central is TaskState.RUNNING)
        await wait_until(lambda: seen.retained.get(DESCRIPTOR))
        window_ms = running.gateway.ledger.get("digits").expires_ms
        at(window_ms - 1)
        await wait_until(lambda: len(looks) > 1)
        assert seen.retained[DESCRIPTOR] != b""
        at(window_ms)
        await wait_until(lambda: seen.retained.get(DESCRIPTOR) == b"")


async def test_a_running_task_is_not_cleared(
    world: Any, watching: Any, wait_until: Any, operator: Any
) -> None:
    world.keep_hours = 0.0
    async with world.gateway() as running, watching(world.region) as seen:
        await running.post(operator.envelope())
        await running.post(operator.envelope(task="over", revision=1, desired="canceled"))
        await wait_until(lambda: seen.retained.get("eu-1/tasks/over/descriptor") == b"")
        assert seen.retained[DESCRIPTOR] != b""


async def test_a_flood_of_garbage_stops_nothing(
    world: Any, watching: Any, wait_until: Any, operator: Any, say: Any
) -> None:
    topics = [
        f"{CAM}/state",
        f"{CAM}/tasks/digits/execution",
        CENTRAL_ROUND,
        CENTRAL_STATE,
        "eu-1/gateway/state",
    ]
    async with world.gateway() as running, watching(world.region) as seen:
        await running.post(operator.envelope())
        for topic in topics:
            for payload in (b"{", b"\xff\xfe", b"[]", b'{"schema":2}', b"x" * 300_000):
                await seen.publish(topic, payload)
        await seen.publish(CENTRAL_ROUND, say.round(1))
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
