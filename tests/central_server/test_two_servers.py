"""Two central servers on one broker: they do not share a client id, and the elder says so and ends."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.central_server.parts import Launcher, until
from trellis.errors import Displaced
from trellis.mqtt import MemoryBroker
from trellis.payloads import Presence, State, now_ms

TOPIC = "trellis/v1/central/state"


async def last_state(broker: MemoryBroker) -> State:
    async with (
        asyncio.timeout(60),
        broker.bus("listener") as bus,
        bus.subscribe(TOPIC) as messages,
    ):
        return State.parse((await anext(aiter(messages))).payload)


async def test_the_elder_says_so_and_ends_and_leaves_the_topic_to_the_younger(tmp_path: Path) -> None:
    elder = Launcher(tmp_path / "elder")
    younger = State(state=Presence.ONLINE, boot_id="f" * 16, since=now_ms() + 60_000, api="http://here:1")

    async def run() -> None:
        async with elder() as running:
            async with elder.broker.bus("younger") as bus:
                await bus.wait_connected(60)
                await bus.publish(TOPIC, younger.to_bytes(), retain=True)
            await until(lambda: not running.server.superlink_alive)

    with pytest.raises(BaseExceptionGroup) as caught:
        await run()
    assert caught.group_contains(Displaced, match="another central server has started on this broker")
    assert await last_state(elder.broker) == younger


async def test_a_dead_servers_late_will_does_not_make_the_present_one_offline(tmp_path: Path) -> None:
    launch = Launcher(tmp_path / "runs")
    async with launch():
        present = await last_state(launch.broker)
        will = State(state=Presence.OFFLINE, boot_id="0" * 16, since=now_ms())
        async with launch.broker.bus("the dead one's will") as bus:
            await bus.wait_connected(60)
            await bus.publish(TOPIC, will.to_bytes(), retain=True)

        async def said_again() -> bool:
            found = await last_state(launch.broker)
            return (found.state, found.boot_id) == (present.state, present.boot_id)

        await until(said_again)
