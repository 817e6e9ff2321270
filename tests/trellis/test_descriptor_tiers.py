"""What a task says of its tiers: who takes part where, and how many rounds a region runs."""

from __future__ import annotations

from typing import Any

import pytest

from trellis.descriptor import TaskDescriptor, parse_json, parse_mapping
from trellis.descriptor_tiers import LONGEST_DEADLINE_S
from trellis.errors import DescriptorError

DEVICES = {"minimum": 4, "maximum": 50, "fraction": 0.5, "quorum": 0.6, "deadline_s": 30}


def task(
    aggregation: dict[str, Any], *, regions: tuple[str, ...] = ("eu-1", "us-1"), **fields: Any
) -> TaskDescriptor:
    value = {
        "task": "t",
        "regions": regions,
        "server": {"address": "127.0.0.1:8000"},
        "model": {"name": "lenet5"},
        "data": {"name": "digits", "shape": [1, 8, 8], "classes": 10},
        "train": {"rounds": 3, "learning_rate": 0.1},
        "participants": DEVICES,
        "aggregation": aggregation,
    }
    return parse_mapping(value | fields)


def faults(aggregation: dict[str, Any]) -> list[str]:
    with pytest.raises(DescriptorError) as caught:
        task(aggregation)
    return [str(fault) for fault in caught.value.faults]


def test_without_regions_that_aggregate_the_centre_counts_devices() -> None:
    given = task({})
    assert not given.has_regions
    assert given.participants_at("central") == given.participants == given.participants_at("eu-1")
    assert given.regional_rounds_of("eu-1") == 1


def test_one_region_that_aggregates_is_enough_for_two_tiers() -> None:
    given = task({"regions": {"us-1": {"tier": "regional"}}})
    assert given.has_regions
    assert (given.tier_of("eu-1"), given.tier_of("us-1")) == ("central", "regional")
    assert not task(
        {"tier": "regional", "regions": {r: {"tier": "central"} for r in ("eu-1", "us-1")}}
    ).has_regions


def test_the_centre_counts_members_as_the_task_says() -> None:
    given = task({"tier": "regional", "participants": {"minimum": 1, "quorum": 1.0}})
    assert (given.participants_at("central").minimum, given.participants_at("central").quorum) == (1, 1.0)
    assert given.participants_at("central").maximum == 100, "its own default, not the devices'"
    assert given.participants_at("eu-1") == given.participants


def test_without_its_word_the_centre_waits_for_two_and_for_all_of_the_regions_rounds() -> None:
    regions = {"us-1": {"tier": "regional", "regional_rounds": 9}, "eu-1": {"tier": "central"}}
    given = task(
        {"tier": "regional", "regional_rounds": 5, "regions": regions}, regions=("eu-1", "us-1", "as-1")
    )
    assert given.participants_at("central").model_dump() == {
        "minimum": 2,
        "maximum": 50,
        "fraction": 0.5,
        "quorum": 0.6,
        "deadline_s": 300,  # 30 s, 9 rounds and one more
    }


def test_the_default_never_waits_for_more_members_than_there_can_be() -> None:
    assert task({"tier": "regional"}, regions=("eu-1",)).participants_at("central").minimum == 1
    alone = task({"tier": "regional"}, participants={"minimum": 1, "maximum": 1})
    assert (alone.participants_at("central").minimum, alone.participants_at("central").maximum) == (1, 1)


def test_the_default_counts_a_regions_own_deadline_and_stays_in_bounds() -> None:
    slow = {"us-1": {"tier": "regional", "participants": {"deadline_s": 100}}}
    assert task({"tier": "regional", "regions": slow}).participants_at("central").deadline_s == 200
    long = task({"tier": "regional", "regional_rounds": 1000}, participants={"deadline_s": 3600})
    assert long.participants_at("central").deadline_s == LONGEST_DEADLINE_S == 7 * 24 * 3600


def test_a_region_may_be_set_apart() -> None:
    apart = {"tier": "regional", "regional_rounds": 7, "participants": {"minimum": 1, "deadline_s": 600}}
    given = task({"tier": "regional", "regional_rounds": 2, "regions": {"us-1": apart}})
    assert (given.regional_rounds_of("eu-1"), given.regional_rounds_of("us-1")) == (2, 7)
    assert given.participants_at("eu-1") == given.participants
    assert given.participants_at("us-1").deadline_s == 600
    assert given.participants_at("us-1").maximum == 100
    assert parse_json(given.to_json()) == given


@pytest.mark.parametrize(
    ("aggregation", "fault"),
    [
        (
            {"participants": {"minimum": 1}},
            "aggregation.participants: is for regions that aggregate, and none does (remove it, or set "
            "aggregation.tier to regional)",
        ),
        (
            {"strategy": {"name": "fedavg"}},
            "aggregation.strategy: is for regions that aggregate, and none does (remove it, or set",
        ),
        (
            {"regions": {"us-1": {"tier": "central", "regional_rounds": 2}}},
            "aggregation.regions.us-1.regional_rounds: is for a region of tier regional, and this one is",
        ),
        (
            {"regions": {"us-1": {"tier": "central", "participants": {}}}},
            "aggregation.regions.us-1.participants: is for a region of tier regional, and this one is",
        ),
        (
            {"regions": {"us-1": {"tier": "regional", "regional_rounds": 0}}},
            "aggregation.regions.us-1.regional_rounds: input should be greater than or equal to 1, got 0",
        ),
        (
            {"regions": {"us-1": {"tier": "regional", "participants": {"minimum": 9, "maximum": 2}}}},
            "aggregation.regions.us-1.participants.minimum: must not exceed maximum (2), got 9",
        ),
        (
            {"tier": "regional", "strategy": {"name": "Krum"}},
            "aggregation.strategy.name: string should match pattern",
        ),
        (
            {"tier": "regional", "regions": {"mars": {"tier": "central"}}},
            "aggregation.regions.mars: is none of the task's regions: eu-1, us-1 (remove it, or name it in",
        ),
    ],
)
def test_a_fault_is_named_once(aggregation: dict[str, Any], fault: str) -> None:
    (said,) = faults(aggregation)
    assert said.startswith(fault)
