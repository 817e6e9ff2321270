"""A gateway, or its SuperLink, is killed at exact moments: the task ends with the model of a calm run."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_asyncio
from federation import Device, Federation
from gate import Held
from members import command_line
from tensors_apart import greatest_difference

from trellis.http.client import ServiceClient

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(600)]

TOLERANCE = 1e-5
DEVICES = (Device("d1", "eu-1"), Device("d2", "eu-1"), Device("d3", "us-1"))
ROUNDS = 4
TRAIN = {"rounds": ROUNDS, "local_epochs": 60}
"""A round of a second or so: long enough to be interrupted."""
ALL = {"minimum": 2, "quorum": 1.0, "deadline_s": 120.0}
ALONE = {"us-1": {"tier": "regional", "participants": ALL | {"minimum": 1}}}
EU = "eu-1/gateway"


def regional(**participants: Any) -> dict[str, Any]:
    """Return a task's sections: two regions that average, eu-1 with two devices, us-1 with one."""
    above = ALL | participants
    return {
        "aggregation": {"tier": "regional", "participants": above, "regions": ALONE},
        "participants": ALL,
    }


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fleet(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Federation]:
    folder = tmp_path_factory.mktemp("region-faults") / "fleet"
    async with Federation(folder, devices=DEVICES, gated=True) as started:
        yield started


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def calm(fleet: Federation) -> Path:
    """The model of a run in which nothing happens."""
    await fleet.submit("calm", train=TRAIN, **regional())
    await fleet.ended("calm")
    return await fleet.model("calm")


def parts_of(fleet: Federation, member: str, task: str) -> set[tuple[object, object]]:
    """Return the rounds and phases that an execution has had; a region's is its gateway's."""
    topic = f"{EU}/tasks/{task}/execution" if member == EU else fleet.execution(member, task)
    said = [one.payload for one in fleet.mqtt.heard if one.topic == topic and one.payload]
    return {(one.get("round"), one.get("phase")) for one in said}


async def seen(fleet: Federation, member: str, task: str, number: int, phase: str) -> None:
    """Return once a member stands there in a round, or has."""
    what = f"{member} in round {number}: {phase}"
    await fleet.mqtt.until(lambda: (number, phase) in parts_of(fleet, member, task), what, within_s=120)


def held(fleet: Federation, device: str, task: str, number: int) -> Held:
    """Hold a device's update of a round before its region's front, so that it stays in this round."""
    return fleet.hold_update(device, task, number, tier=fleet.specs[device].region)


def child(fleet: Federation, word: str) -> psutil.Process:
    """Return the one process below the gateway of eu-1 that has `word` in its command line."""
    found = [one for one in fleet.gateways["eu-1"].descendants() if word in command_line(one)]
    assert len(found) == 1, [command_line(one) for one in fleet.gateways["eu-1"].descendants()]
    return found[0]


async def killed(fleet: Federation) -> None:
    """SIGKILL the gateway of eu-1, see it gone, and start it again: it ends what is left of its past life."""
    gateway = fleet.gateways["eu-1"]
    gateway.kill()
    await fleet.mqtt.field("eu-1/gateway/state", "state", "offline")
    gateway.start()


def has_recovered(fleet: Federation, task: str) -> bool:
    """Whether the region's execution has said that another app is on its way."""
    said = [one.payload for one in fleet.mqtt.heard if one.topic == f"{EU}/tasks/{task}/execution"]
    return any(
        (one["phase"], (one.get("reason") or {}).get("code")) == ("connecting", "recovering")
        for one in said
        if one and "phase" in one
    )


def trained(fleet: Federation, device: str, task: str) -> dict[int, int]:
    """Return how often a device has trained in each round of a task."""
    return {number: fleet.trained(device, task, number) for number in range(1, ROUNDS + 1)}


def from_journal(fleet: Federation, device: str, task: str, number: int) -> bool:
    """Whether a device has answered a repeated question of this round."""
    said = fleet.devices[device].said().partition(f"task {task}:")[2]
    return f"round {number} was trained before: answered from the journal" in said


def node_ids(fleet: Federation, task: str) -> set[int]:
    """Return the Flower nodes that the region of eu-1 was to the tier above."""
    said = fleet.mqtt.said(f"{EU}/tasks/{task}/execution", "flower")
    return {flower["node_id"] for flower in said}


async def at_gateway(fleet: Federation, task: str) -> dict[str, Any]:
    async with ServiceClient(fleet.gateway_urls["eu-1"], tls=None) as client:
        return await client.get(f"/v1/tasks/{task}")


def parts(record: dict[str, Any]) -> dict[str, str]:
    """Return what became of each member in a round."""
    return {f"{one['region']}/{one['device']}": one["outcome"] for one in record["outcomes"]}


async def assert_as_if_calm(fleet: Federation, task: str, calm: Path) -> dict[str, Any]:
    """Every round has both regions and all three devices, each once; return the region's own account."""
    view = await fleet.ended(task)
    assert [record["round"] for record in view["history"]] == [1, 2, 3, 4]
    for record in view["history"]:
        assert parts(record) == {EU: "replied", "us-1/gateway": "replied"}, record
        tallies = {one["region"]: one["tally"] for one in record["outcomes"]}
        assert (tallies["eu-1"]["selected"], tallies["eu-1"]["replied"]) == (2, 2), tallies
        assert (tallies["us-1"]["selected"], tallies["us-1"]["replied"]) == (1, 1), tallies
    here = await at_gateway(fleet, task)
    assert [record["round"] for record in here["history"]] == [1, 2, 3, 4]
    for record in here["history"]:
        assert parts(record) == {"eu-1/d1": "replied", "eu-1/d2": "replied"}, record
    assert len(node_ids(fleet, task)) == 1, "the parent knows the region by one node throughout"
    apart = greatest_difference(calm, await fleet.model(task))
    print(f"{task}: {apart:.1e} of a tensor's greatest magnitude from the calm run")
    assert apart <= TOLERANCE
    return here


async def test_a_gateway_killed_in_each_phase_of_a_round_costs_nothing_but_time(
    fleet: Federation, calm: Path
) -> None:
    task, gateway, d2 = "killed", fleet.gateways["eu-1"], fleet.devices["d2"]
    before_pull = fleet.gate.hold(gateway, "pull-messages", after="push-messages")
    second, third = (held(fleet, "d2", task, number) for number in (2, 3))
    await fleet.submit(task, train=TRAIN, **regional())

    # Round 1: the region has checked in; its message lies at the server and has not been asked for.
    await before_pull.arrived()
    await fleet.mqtt.field(f"central/tasks/{task}/round", "phase", "train")
    await killed(fleet)

    # Round 2: its devices train; they go on without it.
    await seen(fleet, "d2", task, 2, "training")
    d2.pause()
    await killed(fleet)
    d2.resume()
    second.release()

    # Round 3: one update is taken in, the other is there, nothing is written.
    await third.arrived()

    def one_has_replied() -> bool:
        stands = fleet.mqtt.latest.get(f"eu-1/tasks/{task}/round", {})
        return (stands.get("round"), stands.get("replied")) == (3, 1)

    await fleet.mqtt.until(one_has_replied, "the region has d1's update")
    child(fleet, "app_start").suspend()
    third.release()
    await seen(fleet, "d2", task, 3, "uploaded")
    await killed(fleet)

    # Round 4: its own round is kept, its reply has not left.
    before_push = fleet.gate.hold(
        gateway, "push-messages", when=lambda: f"task={task} regional round=4 " in gateway.said()
    )
    await before_push.arrived()
    assert (await at_gateway(fleet, task))["history"][-1]["round"] == 4
    await killed(fleet)

    here = await assert_as_if_calm(fleet, task, calm)
    assert here["execution"]["attempt"] == 5, here["execution"]
    for name in ("d1", "d2"):
        assert trained(fleet, name, task) == {1: 1, 2: 1, 3: 1, 4: 1}, "nothing is trained twice"
        assert from_journal(fleet, name, task, 3)
        assert not from_journal(fleet, name, task, 4), "the finished round was asked again"
    assert from_journal(fleet, "d2", task, 2)


@pytest.mark.long
async def test_a_regions_superlink_killed_alone_is_followed_by_another(fleet: Federation, calm: Path) -> None:
    task, gateway, d2 = "superlink", fleet.gateways["eu-1"], fleet.devices["d2"]
    second = held(fleet, "d2", task, 2)
    await fleet.submit(task, train=TRAIN, **regional())
    await seen(fleet, "d2", task, 2, "training")
    d2.pause()
    child(fleet, "flower-superlink").kill()
    await fleet.mqtt.until(
        lambda: has_recovered(fleet, task), "the region says that it recovers, and does not train"
    )
    d2.resume()
    second.release()
    here = await assert_as_if_calm(fleet, task, calm)
    assert gateway.running
    assert trained(fleet, "d2", task) == {1: 1, 2: 1, 3: 1, 4: 1}
    assert from_journal(fleet, "d2", task, 2)
    assert here["execution"]["attempt"] == 1, "the gateway itself has not begun anew"


def is_back(view: dict[str, Any]) -> bool:
    """Whether the server sees the region of eu-1 with its update uploaded."""
    regions = {one["region"]: one for one in view["devices"]}
    return regions["eu-1"]["online"] and regions["eu-1"]["phase"] == "uploaded"


@pytest.mark.long
async def test_without_a_region_rounds_close_at_the_quorum_and_its_late_update_counts_nowhere(
    fleet: Federation,
) -> None:
    task, gateway = "away", fleet.gateways["eu-1"]
    second, third = held(fleet, "d2", task, 2), held(fleet, "d3", task, 3)
    # One region would be enough for round 1: both say at once who they are.
    check_ins = [fleet.gate.hold(one, "push-messages") for one in fleet.gateways.values()]
    await fleet.submit(task, train=TRAIN | {"rounds": 5}, **regional(minimum=1, quorum=0.5))
    for check_in in check_ins:
        await check_in.arrived()
    for check_in in check_ins:
        check_in.release()
    await seen(fleet, "d2", task, 2, "training")
    gateway.kill()
    second.release()
    # Round 3 has us-1 alone, and is held there until eu-1 is back, and has answered what it was asked before.
    await third.arrived()
    gateway.start()
    await seen(fleet, EU, task, 2, "uploaded")
    await fleet.until(task, is_back, "the server knows that eu-1 is back")
    third.release()
    view = await fleet.ended(task)
    both = {EU: "replied", "us-1/gateway": "replied"}
    assert {record["round"]: parts(record) for record in view["history"]} == {
        1: both,
        2: {EU: "lost", "us-1/gateway": "replied"},
        3: {"us-1/gateway": "replied"},
        4: both,
        5: both,
    }
    assert from_journal(fleet, "d2", task, 2)
    assert [record["round"] for record in (await at_gateway(fleet, task))["history"]] == [1, 2, 4, 5]
