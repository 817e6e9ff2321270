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
"""Rounds of a second or so."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fleet(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Federation]:
    folder = tmp_path_factory.mktemp("apart") / "fleet"
    devices = (Device("d1"), Device("d2"))
    async with Federation(folder, devices=devices, own_broker=("eu-1",), gated=True) as started:
        yield started


@pytest.mark.long
async def test_rounds_go_on_while_the_servers_broker_is_away_and_its_topics_are_right_afterwards(
    fleet: Federation,
) -> None:
    # The replies to its check-in, and of the first round's training and evaluation, pass: the second round
    # ends only once the broker has gone.
    held = fleet.gate.hold(fleet.devices["d2"], "push-messages", count=4)
    await fleet.submit("apart", train=STEADY, evaluate={"on": ["server", "devices"]})
    await held.arrived()
    view = await fleet.view("apart")
    assert [one["round"] for one in view["history"]] == [1]
    await fleet.cut_broker()
    held.release()
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
        await until_same(fleet.mqtt, "central/tasks/apart/round", region, "eu-1/tasks/apart/round")
        await region.field("eu-1/tasks/apart/status", "central", "succeeded")
        for device in fleet.specs:
            execution = fleet.execution(device, "apart")
            await region.field(execution, "state", "SUCCEEDED")
            await until_same(fleet.mqtt, execution, region, execution)
    # Said while the server's broker was away: the lines have waited for it, and for the server.
    for device in fleet.specs:
        await heard_to_train(fleet, device, rounds=(1, done + 2, done + 3))


async def until_same(one: Observer, topic: str, other: Observer, other_topic: str) -> None:
    """Return once the same stands on both: each broker tells in its own time."""
    await one.until(
        lambda: one.latest.get(topic, {}) == other.latest[other_topic],
        f"{topic}: {other.latest[other_topic]} as on {other_topic}",
    )


async def heard_to_train(fleet: Federation, device: str, *, rounds: tuple[int, ...]) -> None:
    """Return once the task's log holds the line of a device of each of these rounds."""
    deadline = time.monotonic() + 120
    while True:
        logs = await fleet.operator("logs", "apart", "--device", device)
        assert logs.code == 0, logs
        if all(f"round {number}: trained on" in logs.out for number in rounds):
            return
        assert time.monotonic() < deadline, f"of {device} rounds {rounds} are due: {logs}"
