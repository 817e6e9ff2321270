"""A region with a broker of its own, while the server's is away."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from federation import Device, Federation
from observer import Observer

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]

STEADY = {"rounds": 6, "local_epochs": 60}
"""Rounds of a second or so: long enough to be in one when the broker goes."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fleet(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Federation]:
    folder = tmp_path_factory.mktemp("apart") / "fleet"
    async with Federation(folder, devices=(Device("d1"), Device("d2")), own_broker=("eu-1",)) as started:
        yield started


async def test_rounds_go_on_while_the_servers_broker_is_away_and_its_topics_are_right_afterwards(
    fleet: Federation,
) -> None:
    await fleet.submit("apart", train=STEADY, evaluate={"on": ["server", "devices"]})
    view = await fleet.rounds_done("apart", 1)
    await fleet.cut_broker()
    away = time.monotonic()
    done = len(view["history"])
    view = await fleet.rounds_done("apart", done + 3)
    print(f"{len(view['history']) - done} rounds in {time.monotonic() - away:.1f} s without the broker")
    fleet.broker.start()
    view = await fleet.ended("apart")
    print([one["duration_s"] for one in view["history"]])
    assert [one["replied"] for one in view["history"]] == [2] * 6
    for topic in ("central/tasks/apart/state", "eu-1/tasks/apart/status"):
        await fleet.mqtt.until(lambda topic=topic: topic in fleet.mqtt.latest, topic)
    await fleet.mqtt.field("central/tasks/apart/state", "state", "succeeded")
    await fleet.mqtt.field("eu-1/tasks/apart/status", "central", "succeeded")
    await fleet.mqtt.field("eu-1/tasks/apart/status", "executions", {"SUCCEEDED": 2})
    await fleet.mqtt.field("central/tasks/apart/round", "round", 6)
    await fleet.all_online()
    async with Observer(fleet.region_broker_urls["eu-1"], fleet.check_alive) as region:
        await region.field("eu-1/tasks/apart/round", "round", 6)
        assert region.latest["eu-1/tasks/apart/round"] == fleet.mqtt.latest["central/tasks/apart/round"]
        await region.field("eu-1/tasks/apart/status", "central", "succeeded")
        for device in fleet.specs:
            here, there = region.latest, fleet.mqtt.latest
            await region.field(fleet.execution(device, "apart"), "state", "SUCCEEDED")
            assert there[fleet.execution(device, "apart")] == here[fleet.execution(device, "apart")]
    # Said while the server's broker was away: the lines have waited for it, and for the server.
    for device in fleet.specs:
        await heard_to_train(fleet, device, rounds=(1, done + 2, done + 3))


async def heard_to_train(fleet: Federation, device: str, *, rounds: tuple[int, ...]) -> None:
    """Return once the task's log holds the line of a device of each of these rounds."""
    deadline = time.monotonic() + 40
    while True:
        logs = await fleet.operator("logs", "apart", "--device", device)
        assert logs.code == 0, logs
        if all(f"round {number}: trained on" in logs.out for number in rounds):
            return
        assert time.monotonic() < deadline, f"of {device} rounds {rounds} are due: {logs}"
