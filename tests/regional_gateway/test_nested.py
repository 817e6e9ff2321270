"""A gateway with a broker of its own brings up what the regions below it say."""

from __future__ import annotations

from typing import Any

import pytest

from trellis.keys.principals import OPERATOR, device, gateway
from trellis.mqtt import Publication
from trellis.payloads import ExecutionState, Presence, State, TaskState

SITE, ROOM, OTHER = "site", "room", "us-1"
"""`site` stands below eu-1, `room` below that, `us-1` below nothing here."""
EXECUTION = "site/devices/cam-1/tasks/digits/execution"
REGIONS = {"regions": ["eu-1", SITE]}


def state_of(parent: str, since: int = 3) -> bytes:
    return State(state=Presence.ONLINE, boot_id=f"b{since}", since=since, parent=parent).to_bytes()


@pytest.fixture
def world(world: Any) -> Any:
    world.two = True
    return world


async def test_what_the_regions_below_say_goes_up_and_what_others_say_does_not(
    world: Any, watching: Any, wait_until: Any, operator: Any, say: Any
) -> None:
    said = {
        "site/gateway/state": state_of("eu-1"),
        "site/devices/cam-1/state": say.online(),
        "room/gateway/state": state_of(SITE),
        "room/devices/cam-2/state": say.online(),
    }
    of_task = {
        "site/gateway/tasks/digits/execution": say.execution(ExecutionState.IN_PROGRESS),
        "site/tasks/digits/round": say.round(1),
        EXECUTION: say.execution(ExecutionState.QUEUED),
    }
    async with world.gateway() as running, watching(world.region) as low, watching(world.parent) as high:
        await wait_until(lambda: running.gateway.connections[1])
        # The gateway of `room` is heard before it is known where `site` stands.
        for topic in sorted(said, key=lambda one: "site" in one):
            await low.publish(topic, said[topic])
        for region in (OTHER, "eu-2"):
            await low.publish(f"{region}/gateway/state", state_of("central" if region == OTHER else OTHER))
            await low.publish(f"{region}/devices/cam-1/state", say.online())
        for topic, payload in of_task.items():
            await low.publish(topic, payload)
        await wait_until(lambda: said.items() <= high.retained.items())
        assert not of_task.keys() & high.retained.keys()  # nobody has posted it here
        await running.post(operator.envelope(**REGIONS))
        await wait_until(lambda: of_task.items() <= high.retained.items())
        await low.publish("site/tasks/digits/descriptor", b"not for above")
        await low.publish(EXECUTION, b"")
        await wait_until(lambda: high.retained[EXECUTION] == b"")
        assert not [topic for topic in high.retained if topic.startswith((OTHER, "eu-2"))]
        assert "site/tasks/digits/descriptor" not in high.retained
        world.parent.stop()
        await wait_until(lambda: not running.gateway.connections[1])
        world.parent.start()
        del of_task[EXECUTION]
        async with watching(world.parent, "later") as later:
            await wait_until(lambda: (said | of_task).items() <= later.retained.items())


async def test_the_regions_front_is_for_itself_and_those_below(
    world: Any, watching: Any, wait_until: Any
) -> None:
    async with world.gateway() as running, watching(world.region) as low:
        admits = running.gateway.nested.admits
        assert admits(device("eu-1", "cam-1"))
        assert not admits(gateway(ROOM))
        await low.publish("us-1/gateway/state", state_of("central"))
        await low.publish("site/gateway/state", state_of("eu-1"))
        await low.publish("room/gateway/state", state_of(SITE))
        await wait_until(lambda: admits(gateway(ROOM)))
        assert admits(device(SITE, "cam-1"))
        assert not [one for one in (device(OTHER, "cam-1"), gateway(OTHER), OPERATOR, None) if admits(one)]


async def test_executions_of_devices_stay_below_where_a_region_on_the_way_up_averages(
    world: Any, watching: Any, wait_until: Any, operator: Any, say: Any
) -> None:
    averages = {"aggregation": {"regions": {SITE: {"tier": "regional"}}}}
    async with world.gateway() as running, watching(world.region) as low, watching(world.parent) as high:
        await wait_until(lambda: running.gateway.connections[1])
        await running.post(operator.envelope(**REGIONS, **averages))
        await running.post(operator.envelope(task="relayed", **REGIONS))
        await low.publish("site/gateway/state", state_of("eu-1"))
        for task in ("digits", "relayed"):
            await low.publish(
                f"site/devices/cam-1/tasks/{task}/execution", say.execution(ExecutionState.QUEUED)
            )
        await low.publish("site/gateway/tasks/digits/execution", say.execution(ExecutionState.IN_PROGRESS))
        await wait_until(lambda: "site/devices/cam-1/tasks/relayed/execution" in high.retained)
        await wait_until(lambda: "site/gateway/tasks/digits/execution" in high.retained)
        assert EXECUTION not in high.retained


async def test_what_was_carried_of_a_task_goes_with_its_topics(
    world: Any, watching: Any, wait_until: Any, operator: Any, say: Any
) -> None:
    world.keep_hours = 0.0
    async with world.gateway() as running, watching(world.region) as low, watching(world.parent) as high:
        await wait_until(lambda: running.gateway.connections[1])
        await low.publish("site/gateway/state", state_of("eu-1"))
        await running.post(operator.envelope(**REGIONS))
        await low.publish(EXECUTION, say.execution(ExecutionState.SUCCEEDED))
        await wait_until(lambda: high.retained.get(EXECUTION))
        await high.publish("central/tasks/digits/state", say.central(TaskState.SUCCEEDED))
        await wait_until(lambda: high.retained[EXECUTION] == b"")
        assert high.retained["site/gateway/state"], "the region itself is still there"


async def test_who_below_does_not_come_back_to_the_broker_is_no_longer_shown_above(
    world: Any, watching: Any, wait_until: Any, say: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr("regional_gateway.upward.RETURN_S", 1.0)
    async with world.gateway() as running, watching(world.parent) as high:
        await wait_until(lambda: running.gateway.connections[1])
        async with watching(world.region) as low:
            await low.publish("site/gateway/state", state_of("eu-1"))
            for name in ("stays", "lost"):
                await low.publish(f"site/devices/{name}/state", say.online())
            await wait_until(lambda: "site/devices/lost/state" in high.retained)
        world.region.stop()
        await wait_until(lambda: not running.gateway.connections[0])
        world.region.start()
        # They are back before the gateway, as far as it can see.
        for topic, payload in (
            ("site/gateway/state", state_of("eu-1", since=4)),
            ("site/devices/stays/state", say.online()),
        ):
            world.region._route(Publication(f"trellis/v1/{topic}", payload, retain=True))
        await wait_until(lambda: high.retained["site/devices/lost/state"] == b"")
        assert high.retained["site/devices/stays/state"]
        assert high.retained["site/gateway/state"]
