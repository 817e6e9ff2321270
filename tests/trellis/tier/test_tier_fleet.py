"""A task's fleet: what devices say becomes a view whose version grows with real changes alone."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from trellis.flower.backchannel import FleetDevice
from trellis.payloads import Execution, ExecutionState, FlowerLinkage, Phase, Presence, State
from trellis.tier.fleet import TaskFleet


def online(boot_id: str = "b1") -> State:
    return State(state=Presence.ONLINE, boot_id=boot_id, since=1)


def offline(boot_id: str = "b1") -> State:
    return State(state=Presence.OFFLINE, boot_id=boot_id, since=2)


def execution(version: int, phase: Phase = Phase.WAITING, message_id: str | None = None) -> Execution:
    return Execution(
        state=ExecutionState.IN_PROGRESS,
        phase=phase,
        version=version,
        samples=100,
        flower=FlowerLinkage(node_id=7, nonce="n", message_id=message_id),
    )


def fleet() -> TaskFleet:
    return TaskFleet("digits-mlp", ["eu-1"])


def test_a_device_is_seen_once_it_has_an_execution() -> None:
    seen = fleet()
    seen.device_state("eu-1", "cam-1", online())
    assert seen.view.devices == ()
    seen.execution("eu-1", "cam-1", execution(1))
    assert seen.view.devices == (
        FleetDevice(
            region="eu-1",
            device="cam-1",
            online=True,
            state=ExecutionState.IN_PROGRESS,
            phase=Phase.WAITING,
            node_id=7,
            nonce="n",
            samples=100,
        ),
    )


def test_the_broker_is_seen_to_go_and_to_come_back_once_each() -> None:
    seen = fleet()
    seen.execution("eu-1", "cam-1", execution(1))
    before = seen.view
    seen.see(blind=False)
    assert seen.view == before
    for version in (1, 1, 2):  # the last is heard once the broker is back
        seen.see(blind=version == 1)
        seen.execution("eu-1", "cam-1", execution(version))
    assert (seen.view.version, seen.view.blind) == (before.version + 2, False)


def test_order_of_arrival_makes_no_difference() -> None:
    one, other = fleet(), fleet()
    one.device_state("eu-1", "cam-1", online())
    one.execution("eu-1", "cam-1", execution(1))
    one.execution("eu-1", "cam-0", execution(4))
    other.execution("eu-1", "cam-0", execution(4))
    other.execution("eu-1", "cam-1", execution(1))
    other.device_state("eu-1", "cam-1", online())
    assert one.view.devices == other.view.devices
    assert [device.device for device in one.view.devices] == ["cam-0", "cam-1"]


def test_the_version_grows_only_when_something_changes() -> None:
    seen = fleet()
    before = seen.view.version
    assert before == 1
    seen.execution("eu-1", "cam-1", execution(1))
    assert seen.view.version == 2
    seen.execution("eu-1", "cam-1", execution(1))
    seen.execution("eu-1", "cam-1", execution(2))  # a newer version that says the same
    seen.device_state("eu-1", "cam-9", online())  # has no part in the task
    assert seen.view.version == 2
    seen.cancel()
    seen.cancel()
    assert (seen.view.version, seen.view.canceled) == (3, True)


def test_an_older_execution_is_dropped() -> None:
    seen = fleet()
    seen.execution("eu-1", "cam-1", execution(5, Phase.UPLOADED, "m2"))
    seen.execution("eu-1", "cam-1", execution(4, Phase.TRAINING))
    assert seen.view.devices[0].message_id == "m2"


def test_a_device_that_lost_its_journal_counts_anew_after_its_birth() -> None:
    seen = fleet()
    seen.device_state("eu-1", "cam-1", online("b1"))
    seen.execution("eu-1", "cam-1", execution(50, Phase.TRAINING))
    seen.device_state("eu-1", "cam-1", online("b2"))
    seen.execution("eu-1", "cam-1", execution(1, Phase.WAITING))
    assert seen.view.devices[0].phase is Phase.WAITING


def test_the_late_will_of_an_earlier_process_does_not_count() -> None:
    seen = fleet()
    seen.execution("eu-1", "cam-1", execution(1))
    seen.device_state("eu-1", "cam-1", online("b2"))
    seen.device_state("eu-1", "cam-1", offline("b1"))
    assert seen.view.devices[0].online
    seen.device_state("eu-1", "cam-1", offline("b2"))
    assert not seen.view.devices[0].online


def test_foreign_regions_are_left_out_and_cleared_topics_remove() -> None:
    seen = fleet()
    seen.execution("mars-1", "cam-1", execution(1))
    assert seen.view.version == 1
    seen.execution("eu-1", "cam-1", execution(9))
    seen.execution("eu-1", "cam-1", None)
    assert seen.view.devices == ()
    seen.execution("eu-1", "cam-1", execution(1))
    assert len(seen.view.devices) == 1


async def test_whoever_waits_is_answered_by_the_next_change() -> None:
    seen = fleet()
    waiting = asyncio.create_task(seen.wait(1, 60.0))
    await asyncio.sleep(0)
    assert not waiting.done()
    seen.execution("eu-1", "cam-1", execution(1))
    view = await asyncio.wait_for(waiting, 30.0)
    assert (view.version, len(view.devices)) == (2, 1)
    assert (await seen.wait(0, 10.0)).version == 2  # has news already


async def test_waiting_ends_at_its_deadline_and_at_the_end_of_the_service() -> None:
    seen = fleet()
    assert (await seen.wait(1, 0.01)).version == 1
    waiting = asyncio.create_task(seen.wait(1, 60.0))
    await asyncio.sleep(0)
    seen.close()
    assert (await asyncio.wait_for(waiting, 30.0)).version == 1


def tree(here: str, *, regional: tuple[str, ...] = ("country", "site-1")) -> TaskFleet:
    """Country above site-1 and site-2; one device in each, one region at the centre; seen from `here`."""
    regions = ("country", "site-1", "site-2", "far")
    fleet = TaskFleet("digits-mlp", regions, regional=regional, here=here)
    parents = {"country": None, "site-1": "country", "site-2": "country", "far": None}
    for region, parent in parents.items():
        fleet.gateway_state(region, online().model_copy(update={"parent": parent}))
        fleet.gateway_execution(region, execution(1))
        fleet.device_state(region, "cam", online())
        fleet.execution(region, "cam", execution(1))
    return fleet


def members(fleet: TaskFleet) -> list[str]:
    return [device.name for device in fleet.view.devices]


def test_each_member_belongs_to_the_nearest_tier_above_it_that_aggregates() -> None:
    assert members(tree("central")) == ["country/gateway", "far/cam"]
    # site-2 relays: its device is the country's own member.
    assert members(tree("country")) == ["country/cam", "site-1/gateway", "site-2/cam"]
    assert members(tree("site-1")) == ["site-1/cam"]


def test_no_member_is_counted_at_two_tiers() -> None:
    for regional in ((), ("site-1",), ("country",), ("country", "site-1", "site-2", "far")):
        found = [name for here in ("central", *regional) for name in members(tree(here, regional=regional))]
        devices = {f"{region}/cam" for region in ("country", "site-1", "site-2", "far")}
        assert sorted(found) == sorted(devices | {f"{region}/gateway" for region in regional})


def test_without_regions_that_aggregate_every_device_is_the_centres() -> None:
    assert members(tree("central", regional=())) == ["country/cam", "far/cam", "site-1/cam", "site-2/cam"]


def test_gateways_that_name_each_other_as_parents_end_at_the_centre() -> None:
    fleet = TaskFleet("t", ("a", "b"), regional=())
    fleet.gateway_state("a", online().model_copy(update={"parent": "b"}))
    fleet.gateway_state("b", online().model_copy(update={"parent": "a"}))
    fleet.device_state("a", "cam", online())
    fleet.execution("a", "cam", execution(1))
    assert members(fleet) == ["a/cam"]


def test_the_tier_above_is_heard_of_once() -> None:
    fleet = tree("country")
    fleet.announced(3)
    version = fleet.view.version
    fleet.announced(3)
    assert (fleet.view.announced, fleet.view.version) == (3, version)
    fleet.end()
    assert (fleet.view.over, fleet.view.version) == (True, version + 1)


def test_above_a_region_that_the_task_does_not_name_is_the_centre() -> None:
    for here, due in (("central", ["site/cam"]), ("eu", [])):
        seen = TaskFleet("digits", ["eu", "site"], regional=["eu"], here=here)
        for region, parent in (("eu", "central"), ("de", "eu"), ("site", "de")):
            seen.gateway_state(region, online().model_copy(update={"parent": parent}))
        seen.execution("site", "cam", execution(1))
        assert [device.name for device in seen.view.devices] == due


def test_what_one_member_says_makes_no_other_anew() -> None:
    seen = fleet()
    for device in ("cam-0", "cam-1", "cam-2"):
        seen.device_state("eu-1", device, online())
        seen.execution("eu-1", device, execution(1))
    before = seen.view.devices
    seen.execution("eu-1", "cam-1", execution(2, Phase.TRAINING))
    seen.device_state("eu-1", "cam-1", offline())
    after = seen.view.devices
    assert [now is then for now, then in zip(after, before, strict=True)] == [True, False, True]
    assert seen.view is seen.view


def test_members_follow_their_region_to_another_parent_and_back() -> None:
    country, central = tree("country"), tree("central")
    versions = country.view.version, central.view.version
    for parent, below, above in (
        (None, ["country/cam", "site-1/gateway"], ["country/gateway", "far/cam", "site-2/cam"]),
        ("country", ["country/cam", "site-1/gateway", "site-2/cam"], ["country/gateway", "far/cam"]),
    ):
        for seen in (country, central):
            seen.gateway_state("site-2", online().model_copy(update={"parent": parent}))
        assert (members(country), members(central)) == (below, above)
    assert (country.view.version, central.view.version) == (versions[0] + 2, versions[1] + 2)


def test_a_member_that_goes_and_comes_back_while_its_region_is_elsewhere_is_listed_as_it_is() -> None:
    seen = tree("country")
    seen.gateway_state("site-2", online())
    version = seen.view.version
    seen.device_state("site-2", "cam", offline())
    seen.execution("site-2", "cam", execution(2, Phase.TRAINING))
    assert seen.view.version == version  # nobody's member here
    seen.gateway_state("site-2", online().model_copy(update={"parent": "country"}))
    last = seen.view.devices[-1]
    assert (last.name, last.online, last.phase) == ("site-2/cam", False, Phase.TRAINING)
    seen.execution("site-2", "cam", None)
    assert members(seen) == ["country/cam", "site-1/gateway"]


async def test_each_change_counts_though_all_come_before_anybody_looks() -> None:
    seen = fleet()
    waiting = asyncio.create_task(seen.wait(seen.view.version, 60.0))
    await asyncio.sleep(0)
    for number in range(50):
        seen.execution("eu-1", f"cam-{number:02d}", execution(1))
    view = await asyncio.wait_for(waiting, 30.0)
    assert (view.version, len(view.devices)) == (51, 50)
    again = asyncio.create_task(seen.wait(view.version, 60.0))
    await asyncio.sleep(0)
    seen.execution("eu-1", "cam-00", execution(2, Phase.TRAINING))
    seen.execution("eu-1", "cam-00", execution(3))  # back to what it was: two changes
    view = await asyncio.wait_for(again, 30.0)
    assert (view.version, view.devices[0].phase) == (53, Phase.WAITING)


REGIONS = ("country", "site-1", "site-2", "far")
Said = tuple[str, str, str | None]
SAID = st.lists(
    st.tuples(
        st.sampled_from(["parent", "state", "execution"]),
        st.sampled_from(REGIONS),
        st.sampled_from([None, "country", "site-1", "far"]),
    ),
    max_size=30,
)


def tell(fleet: TaskFleet, said: Said, version: int) -> None:
    """Have a gateway name its parent, or its region's device go or come, or say or clear its execution."""
    what, region, value = said
    if what == "parent":
        fleet.gateway_state(region, online().model_copy(update={"parent": value}))
    elif what == "state":
        fleet.device_state(region, "cam", online() if value else offline())
    else:
        fleet.execution(region, "cam", execution(version) if value else None)


@given(SAID)
def test_the_view_is_that_of_one_who_has_heard_the_last_words_alone(said: list[Said]) -> None:
    seen = TaskFleet("digits-mlp", REGIONS, regional=["country"], here="country")
    for number, word in enumerate(said, start=1):
        before = seen.view
        tell(seen, word, number)
        assert seen.view.version - before.version == (seen.view.devices != before.devices)
    fresh = TaskFleet("digits-mlp", REGIONS, regional=["country"], here="country")
    last = {word[:2]: (word, number) for number, word in enumerate(said, start=1)}
    for word, number in last.values():
        tell(fresh, word, number)
    assert seen.view.devices == fresh.view.devices
