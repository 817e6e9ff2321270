"""A gateway whose broker, or whose parent's broker, goes away and comes back."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from regional_gateway.brokers import are_one, mqtt
from trellis.errors import Refused
from trellis.http.client import ServiceClient
from trellis.http.server import HttpServer, create_app
from trellis.mqtt import BusMessage, Publication
from trellis.mqtt.inbox import Delivery, Subscription
from trellis.payloads import ExecutionState, Info, Round, TaskState

DESCRIPTOR, STATUS, ROUND = (f"eu-1/tasks/digits/{what}" for what in ("descriptor", "status", "round"))
CENTRAL_ROUND = "central/tasks/digits/round"
CAM = "eu-1/devices/cam-7"


async def test_everything_is_said_again_after_the_broker_restarts(
    world: Any, watching: Any, wait_until: Any, operator: Any, say: Any
) -> None:
    async with world.gateway() as running:
        async with watching(world.region) as seen:
            await running.post(operator.envelope())
            await seen.publish(CENTRAL_ROUND, say.round(2))
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
        assert (await running.post(operator.envelope()))[0] == 201
        world.region.start()
        async with watching(world.region) as seen:
            await wait_until(lambda: DESCRIPTOR in seen.retained)


@pytest.fixture
def two_brokers(world: Any) -> Any:
    world.two = True
    return world


async def test_with_two_brokers_devices_go_up_and_rounds_come_down(
    two_brokers: Any, watching: Any, wait_until: Any, operator: Any, say: Any
) -> None:
    world = two_brokers
    cam = say.online()
    info = Info(
        version="1", python="3", platform="l", machine="m", cpus=2, memory_mb=3, backends=("torch",)
    ).to_bytes()
    async with world.gateway() as running:
        async with watching(world.region) as low, watching(world.parent) as high:
            await wait_until(lambda: running.gateway.connections[1])
            await running.post(operator.envelope())
            due = {
                f"{CAM}/state": cam,
                f"{CAM}/info": info,
                f"{CAM}/tasks/digits/execution": say.execution(ExecutionState.QUEUED, 1),
            }
            for topic, payload in due.items():
                await low.publish(topic, payload)
            await wait_until(lambda: due.items() <= high.retained.items())
            await wait_until(lambda: STATUS in high.retained and "eu-1/gateway/state" in high.retained)
            await high.publish(CENTRAL_ROUND, say.round(1))
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


async def test_a_device_that_thinks_up_tasks_fills_neither_memory_nor_disk_nor_the_parents_broker(
    two_brokers: Any, watching: Any, wait_until: Any, operator: Any, say: Any
) -> None:
    world = two_brokers
    async with world.gateway() as running, watching(world.region) as low, watching(world.parent) as high:
        await wait_until(lambda: running.gateway.connections[1])
        await running.post(operator.envelope())
        for number in range(2000):
            topic = f"{CAM}/tasks/thought-up-{number}/execution"
            await low.publish(topic, say.execution(ExecutionState.QUEUED, 1))
        execution = f"{CAM}/tasks/digits/execution"
        await low.publish(execution, say.execution(ExecutionState.QUEUED, 1))
        await wait_until(lambda: execution in high.retained)
        await running.gateway.fleet.save()
        stored = await running.gateway._store.observations()
        assert list(stored.executions) == [("cam-7", "digits")]
        assert running.gateway._upward.standing == (f"trellis/v1/{execution}",)
        assert not any("thought-up" in topic for topic in high.retained)


async def test_rounds_go_on_over_http_while_the_parents_broker_is_away(
    two_brokers: Any, watching: Any, wait_until: Any, operator: Any, say: Any
) -> None:
    world = two_brokers
    now = {"round": 1, "state": "running"}
    asked: list[str] = []
    app = create_app("a central server")

    @app.get("/v1/tasks/digits/round")
    async def round_now() -> Any:
        asked.append("round")
        return json.loads(say.round(now["round"]))

    @app.get("/v1/tasks/digits/state")
    async def state_now() -> Any:
        asked.append("state")
        return {"task": "digits", "revision": 1, "state": now["state"], "since": 1, "rounds": 3}

    async with HttpServer(app, host="127.0.0.1", port=0, tls=None) as central_server:
        world.server = central_server.url
        async with world.gateway() as running, watching(world.region) as low, watching(world.parent) as high:
            await wait_until(lambda: running.gateway.connections[1])
            await running.post(operator.envelope())
            await high.publish(CENTRAL_ROUND, say.round(1))
            await wait_until(lambda: ROUND in low.retained)
            assert asked == []
            world.parent.stop()
            now["round"] = 2
            await wait_until(lambda: Round.parse(low.retained[ROUND]).round == 2)
            now["state"] = "succeeded"
            await wait_until(lambda: (said := low.status()) and said.central is TaskState.SUCCEEDED)
            world.parent.start()
            await wait_until(lambda: running.gateway.connections[1])


async def test_below_another_gateway_its_rounds_go_on_over_http_while_its_broker_is_away(
    two_brokers: Any, watching: Any, wait_until: Any, operator: Any, say: Any
) -> None:
    world, now = two_brokers, {"round": 1}
    app = create_app("the gateway of de")

    @app.get("/healthz")
    async def health() -> Any:
        return {"region": "de", "front": None, "above": []}

    @app.get("/v1/tasks/digits/round")
    async def round_now() -> Any:
        return json.loads(say.round(now["round"]))

    @app.get("/v1/tasks/digits/state")
    async def state_now() -> Any:
        if now["round"] == 1:
            raise Refused("unknown", "the server has not said anything of it yet")
        return {"task": "digits", "revision": 1, "state": "running", "since": 1, "rounds": 0}

    async with (
        HttpServer(app, host="127.0.0.1", port=0, tls=None) as above,
        world.gateway(parent=above.url) as running,
        watching(world.region) as low,
    ):
        await wait_until(lambda: running.gateway.connections[1])
        await running.post(operator.envelope(regions=["de", "eu-1"]))
        world.parent.stop()
        await wait_until(lambda: ROUND in low.retained and Round.parse(low.retained[ROUND]).round == 1)
        now["round"] = 2
        await wait_until(lambda: Round.parse(low.retained[ROUND]).round == 2)
        await wait_until(lambda: (said := low.status()) and said.central is TaskState.RUNNING)


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
        await running.post(operator.envelope())
        asked_by_then: list[int] = []

        def is_due() -> bool:
            asked_by_then.append(len(asked))
            return len(asked_by_then) > 5

        polling = asyncio.create_task(running.gateway._centre.poll({"central": client}, is_due))
        await wait_until(lambda: asked)
        polling.cancel()
        assert asked_by_then[:6] == [0] * 6
        assert set(asked) <= {"v1/tasks/digits/round", "v1/tasks/digits/state"}


async def test_a_whole_regions_retained_messages_fit_the_inbox() -> None:
    state = Publication("trellis/v1/eu-1/gateway/state", b"", retain=True)
    async with (
        mqtt(None)("mqtt://127.0.0.1:9", "eu-1/gateway", will=state, birth=()) as bus,
        bus.subscribe("trellis/v1/eu-1/devices/#") as messages,
    ):
        assert isinstance(messages, Subscription)
        for number in range(3 * 20_000):  # of 20,000 devices: state, info and an execution
            topic = f"trellis/v1/eu-1/devices/cam-{number}/state"
            messages.deliver(Delivery(BusMessage(topic, b"{}", retain=True), qos=1))
        assert messages.dropped == 0


async def test_one_broker_under_two_names_is_known_as_one() -> None:
    assert await are_one("mqtt://127.0.0.1:1883", "mqtt://localhost")
    assert await are_one("mqtts://localhost:8883", "mqtts://127.0.0.1")
    assert not await are_one("mqtt://127.0.0.1:1883", "mqtt://127.0.0.1:1884")
    assert not await are_one("mqtt://127.0.0.1:1883", "mqtt://192.0.2.1:1883")


async def test_a_device_that_died_while_the_broker_was_away_is_not_thought_to_be_there(
    two_brokers: Any, watching: Any, wait_until: Any, say: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("regional_gateway.upward.RETURN_S", 0.1)
    world = two_brokers
    topic = f"{CAM}/state"

    async def shown(running: Any) -> str:
        (cam,) = (await running.http.get("/v1/devices")).json()["devices"]
        return str(cam["state"])

    async with world.gateway() as running, watching(world.parent) as high:
        async with watching(world.region) as low:
            await low.publish(topic, say.online())
            await wait_until(lambda: high.retained.get(topic))
        assert await shown(running) == "online"
        world.region.stop()
        await wait_until(lambda: not running.gateway.connections[0])
        world.region.start()
        await wait_until(lambda: running.gateway.connections[0])
        assert await shown(running) == "offline"
        await wait_until(lambda: high.retained[topic] == b"")
        async with watching(world.region, "again") as low:
            await low.publish(topic, say.online(since=9))
            await wait_until(lambda: high.retained[topic] != b"")
        assert await shown(running) == "online"
