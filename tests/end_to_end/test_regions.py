"""Regions that average: each gateway is one client of the tier above, and a server to its own devices."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from federation import Device, Federation
from members import Finished
from observer import Observer
from tensors_apart import greatest_difference

from trellis.http.client import ServiceClient

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(400)]

DEVICES = (Device("d1", "eu-1"), Device("d2", "eu-1"), Device("d3", "us-1"), Device("d4", "us-1"))
PARTICIPANTS = {"minimum": 2, "quorum": 1.0, "deadline_s": 60.0}
REGIONAL: dict[str, Any] = {
    "aggregation": {"tier": "regional", "participants": {**PARTICIPANTS, "deadline_s": 120.0}},
    "participants": PARTICIPANTS,
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fleet(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Federation]:
    folder = tmp_path_factory.mktemp("regions") / "fleet"
    async with Federation(folder, devices=DEVICES, gated=True) as started:
        yield started


async def at_gateway(fleet: Federation, region: str, task: str) -> dict[str, Any]:
    async with ServiceClient(fleet.gateway_urls[region], tls=None) as client:
        return await client.get(f"/v1/tasks/{task}")


async def test_two_regions_of_two_devices_train_as_two_members(fleet: Federation) -> None:
    task = await fleet.submit("regions", **REGIONAL)
    view = await fleet.ended(task)
    assert {device["device"] for device in view["devices"]} == {"gateway"}
    for record in view["history"]:
        outcomes = {f"{one['region']}/{one['device']}": one for one in record["outcomes"]}
        assert set(outcomes) == {"eu-1/gateway", "us-1/gateway"}
        for one in outcomes.values():
            assert one["outcome"] == "replied", one
            assert (one["tally"]["selected"], one["tally"]["replied"]) == (2, 2)
    assert len(view["history"]) == 2
    assert view["metrics"]["accuracy"] > 0.5
    for region in fleet.regions:
        here = await at_gateway(fleet, region, task)
        assert here["tier"] == "regional"
        assert [record["round"] for record in here["history"]] == [1, 2]
        assert {one["device"] for record in here["history"] for one in record["outcomes"]} <= set(fleet.specs)
        await fleet.mqtt.field(f"{region}/gateway/tasks/{task}/execution", "state", "SUCCEEDED")
    for name in fleet.specs:
        await fleet.mqtt.field(fleet.execution(name, task), "state", "SUCCEEDED")
    assert Path(await fleet.model(task)).is_file()


async def test_a_regions_own_rounds_are_the_rounds_that_its_devices_would_do_at_the_center(
    fleet: Federation,
) -> None:
    only = {"regions": ("us-1",), "participants": PARTICIPANTS}
    flat = await fleet.submit("six", **only, train={"rounds": 6})
    inside = await fleet.submit(
        "twice-three",
        **only,
        train={"rounds": 2},
        aggregation={"tier": "regional", "regional_rounds": 3, "participants": {"minimum": 1}},
    )
    flat_view, view = await fleet.ended(flat), await fleet.ended(inside)
    assert [len(one["history"]) for one in (flat_view, view)] == [6, 2]
    here = await at_gateway(fleet, "us-1", inside)
    assert [record["round"] for record in here["history"]] == [1, 2, 3, 4, 5, 6]
    for record in view["history"]:
        (one,) = record["outcomes"]
        # Who was in the last of the three, once each.
        assert (one["device"], one["tally"]["replied"]) == ("gateway", 2)
        assert one["samples"] == sum(other["samples"] for other in flat_view["history"][0]["outcomes"])
    assert greatest_difference(await fleet.model(flat), await fleet.model(inside)) <= 1e-5


async def test_a_gateway_killed_while_its_devices_train_goes_on_where_it_was(fleet: Federation) -> None:
    held = fleet.hold_update("d1", "killed", 1, tier="eu-1")
    task = await fleet.submit("killed", train={"rounds": 3, "local_epochs": 30}, **REGIONAL)
    gateway = fleet.gateways["eu-1"]
    execution = f"eu-1/gateway/tasks/{task}/execution"
    await fleet.mqtt.once(execution, "phase", "training", within_s=90)
    gateway.kill()
    held.release()
    gateway.start()
    view = await fleet.ended(task)
    assert len(view["history"]) == 3
    for record in view["history"]:
        replied = {one["region"] for one in record["outcomes"] if one["outcome"] == "replied"}
        assert replied == {"eu-1", "us-1"}, record
    here = await at_gateway(fleet, "eu-1", task)
    assert here["execution"]["attempt"] == 2, here["execution"]
    assert [record["round"] for record in here["history"]] == [1, 2, 3]


async def test_why_a_regions_app_fails_is_read_in_the_tasks_log(fleet: Federation) -> None:
    """Its checkpoints cannot be written, until they can: what the app raised is read from afar."""
    blocked = fleet.folder / "state/gateways/eu-1/tasks/blocked/r1/checkpoints"
    blocked.parent.mkdir(parents=True)
    blocked.touch()
    task = await fleet.submit("blocked", train={"rounds": 1}, **REGIONAL)
    log = f"eu-1/gateway/tasks/{task}/log"
    over = "its run is over: "
    await fleet.mqtt.until(lambda: any(one.startswith(over) for one in fleet.mqtt.said(log, "message")), over)
    blocked.unlink()
    await fleet.ended(task)
    due = (
        f"  gateway eu-1      WARNING   {over}",
        "  gateway eu-1      ERROR     the region's app ends",
        "    Traceback (most recent call last):",
        "in finish_round",
        f"FileExistsError: [Errno 17] File exists: '{blocked}'",
    )
    await fleet.logs(task, "--region", "eu-1", "--level", "warning", saying=due)


async def post(fleet: Federation, file: str, *regions: str) -> Finished:
    """Post a signed task to these gateways alone."""
    gateways = [part for region in regions for part in ("--gateway", fleet.gateway_urls[region])]
    posted = await fleet.operator("task", "post", file, *gateways)
    assert posted.code == 0, posted
    return posted


async def signed(fleet: Federation, name: str, **sections: Any) -> str:
    """Sign a task, post it to the server alone, and return its file."""
    file = fleet.task(name, **sections)
    done = await fleet.ground.command("task", "sign", file, "--keys", "keys", "-o", f"{name}.json")
    assert done.code == 0, done
    async with ServiceClient(fleet.server_url, tls=None) as client:
        await client.post("/v1/tasks", (fleet.folder / f"{name}.json").read_bytes())
    return f"{name}.json"


@pytest.mark.long
async def test_two_tasks_that_meet_on_the_same_devices_both_end_as_each_does_alone(
    fleet: Federation,
) -> None:
    """Each region hears of the other's task first: neither may wait for the other's end."""
    trains = {"one": {"seed": 3, "local_epochs": 20}, "two": {"seed": 4, "learning_rate": 0.02}}
    alone = {}
    for name, train in trains.items():
        await fleet.submit(f"{name}-alone", train=train, **REGIONAL)
        await fleet.ended(f"{name}-alone")
        alone[name] = await fleet.model(f"{name}-alone")
    files = {name: await signed(fleet, name, train=train, **REGIONAL) for name, train in trains.items()}
    first = {"one": ("eu-1", ("d1", "d2")), "two": ("us-1", ("d3", "d4"))}
    for task, (region, devices) in first.items():
        posted = await post(fleet, files[task], region)
        assert "no round begins" not in posted.err, "the server has it"
        for device in devices:
            await fleet.mqtt.field(fleet.execution(device, task), "phase", "waiting")
    await post(fleet, files["two"], "eu-1")
    await post(fleet, files["one"], "us-1")
    for name in trains:
        view = await fleet.ended(name)
        for record in view["history"]:
            assert members(record) == {"eu-1/gateway": True, "us-1/gateway": True}
        for region in fleet.regions:
            for record in (await at_gateway(fleet, region, name))["history"]:
                assert set(members(record).values()) == {True}
                assert len(record["outcomes"]) == 2
        apart = greatest_difference(alone[name], await fleet.model(name))
        assert apart <= 1e-5, f"{name}: {apart:.1e} of a tensor's greatest magnitude"
    # The younger was at work on its two devices, and let the elder pass.
    for device in ("d3", "d4"):
        said = fleet.mqtt.said(fleet.execution(device, "two"), "reason")
        assert any(reason and reason["code"] == "turn" for reason in said), said


@pytest.mark.long
async def test_regions_below_regions_and_devices_of_regions_that_relay(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Centre → eu → eu-1 with two devices; eu-2 relays its device to eu, us-1 its own to the centre.

    The country has a broker of its own, on which its sites and their devices are.
    """
    devices = (Device("d1", "eu-1"), Device("d2", "eu-1"), Device("d3", "eu-2"), Device("d4", "us-1"))
    folder = tmp_path_factory.mktemp("nested") / "fleet"
    parents = {"eu-1": "eu", "eu-2": "eu"}
    async with Federation(folder, devices=devices, parents=parents, own_broker=("eu",)) as fleet:
        apart = {region: {"tier": "central"} for region in ("eu-2", "us-1")}
        aggregation = REGIONAL["aggregation"] | {"regions": apart}
        participants = PARTICIPANTS | {"deadline_s": 100.0}
        file = fleet.task("nested", aggregation=aggregation, participants=participants)
        await posted_at_the_top(fleet, file)
        done = await fleet.operator("task", "run", file)
        assert done.code == 0, done
        for record in (await fleet.view("nested"))["history"]:
            assert members(record) == {"eu/gateway": True, "us-1/d4": True}
        country = await at_gateway(fleet, "eu", "nested")
        for record in country["history"]:
            assert members(record) == {"eu-1/gateway": True, "eu-2/d3": True}
        for record in (await at_gateway(fleet, "eu-1", "nested"))["history"]:
            assert members(record) == {"eu-1/d1": True, "eu-1/d2": True}
        speakers = ("gateway eu", "gateway eu-1", "eu-1/d1", "us-1/d4")
        await fleet.logs("nested", saying=[f"  {speaker:<16}  INFO " for speaker in speakers])
        await fleet.mqtt.field("eu-1/gateway/state", "parent", "eu")
        await relayed_by_the_country(fleet, apart)


async def posted_at_the_top(fleet: Federation, file: str) -> None:
    """Posted to the country's gateway it reaches the sites below, and their devices; the server lacks it."""
    done = await post(fleet, file, "eu", "us-1")
    assert "no round begins yet: " in done.err
    assert "task 'nested'" in done.err
    assert f"`trellis task run {file}`" in done.err
    async with Observer(fleet.region_broker_urls["eu"], fleet.check_alive) as country:
        for device in ("d1", "d2", "d3"):
            await country.field(fleet.execution(device, "nested"), "state", "IN_PROGRESS")
    for region in fleet.regions:
        assert (await at_gateway(fleet, region, "nested"))["revision"] == 1


async def relayed_by_the_country(fleet: Federation, apart: dict[str, Any]) -> None:
    """The country's gateway only relays: what is below it is a member of the centre."""
    regions = apart | {"eu": {"tier": "central"}}
    aggregation = {"tier": "regional", "regions": regions, "participants": PARTICIPANTS | {"minimum": 3}}
    train = {"rounds": 3, "local_epochs": 20}
    await fleet.submit("relayed", aggregation=aggregation, participants=PARTICIPANTS, train=train)
    await fleet.rounds_done("relayed", 1)
    fleet.gateways["eu"].kill()  # back again it carries what was said meanwhile
    fleet.gateways["eu"].start()
    for record in (await fleet.ended("relayed"))["history"]:
        assert members(record) == {"eu-1/gateway": True, "eu-2/d3": True, "us-1/d4": True}
    topic = "eu-1/gateway/tasks/relayed/execution"
    await fleet.mqtt.field(topic, "state", "SUCCEEDED")
    assert fleet.execution("d1", "relayed") not in fleet.mqtt.latest, "a region averages it"
    await fleet.mqtt.field(fleet.execution("d3", "relayed"), "state", "SUCCEEDED")


def members(record: dict[str, Any]) -> dict[str, bool]:
    """Return whose part in a round counts."""
    return {f"{one['region']}/{one['device']}": one["outcome"] == "replied" for one in record["outcomes"]}
