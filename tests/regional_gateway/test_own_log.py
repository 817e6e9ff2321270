"""What a gateway, and the apps that it supervises, log of a task goes out on MQTT."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from trellis.payloads import Log

TOPIC = "eu-1/gateway/tasks/digits/log"
REGIONAL = {"aggregation": {"tier": "regional"}}


def lines(watcher: Any, topic: str = TOPIC) -> list[Log]:
    return [Log.parse(payload) for heard, payload in watcher.heard if heard == topic]


def messages(watcher: Any) -> list[str]:
    return [line.message for line in lines(watcher)]


@pytest.fixture(autouse=True)
def informed() -> Any:
    root = logging.getLogger()
    before = root.level
    root.setLevel(logging.INFO)
    yield
    root.setLevel(before)


@pytest.mark.parametrize("two", [False, True])
async def test_an_apps_traceback_and_that_another_is_started_are_said_on_both_brokers_once(
    world: Any, watching: Any, wait_until: Any, operator: Any, *, two: bool
) -> None:
    world.script, world.two = ["raises", "answers"], two
    async with (
        world.gateway(front=True) as running,
        watching(world.region) as low,
        watching(world.parent, "above") as high,
    ):
        await wait_until(lambda: running.gateway.connections[1])
        await running.post(operator.envelope(**REGIONAL))
        for seen in (low, high):
            await wait_until(lambda seen=seen: sum("app is there" in one for one in messages(seen)) == 2)
        for seen in (low, high):
            (error,) = [line for line in lines(seen) if line.level == "ERROR"]
            assert error.logger == "regional_gateway.app"
            assert error.message.startswith("the region's app ends\nTraceback")
            assert error.message.endswith("OSError: no such file")
            (over,) = [line for line in lines(seen) if line.message.startswith("its run is over: ")]
            assert over.level == "WARNING"
        assert not [topic for topic, _ in low.heard if topic.endswith("/log") and topic != TOPIC]


async def test_what_names_no_task_is_not_said_and_nothing_is_after_the_end(
    world: Any, watching: Any, wait_until: Any, operator: Any
) -> None:
    logger = logging.getLogger("regional_gateway.test_own_log")
    async with watching(world.region) as low:
        async with world.gateway() as running:
            await running.post(operator.envelope())
            logger.error("of no task")
            logger.error("task=digits code=%d: of this", 7)
            await wait_until(lambda: messages(low))
        logger.error("task=digits: the gateway has left")
        await low.publish("eu-1/last", b"")
        await wait_until(lambda: "eu-1/last" in low.retained)
    assert messages(low) == ["code=7: of this"]
