"""What fields say together is told beside what is wrong with others, as far as it can be known."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from small_descriptor import SMALL

from trellis.descriptor import TaskDescriptor, load, parse_json, parse_mapping
from trellis.descriptor_rules import Rule
from trellis.errors import DescriptorError, Fault
from trellis.tier.strategies import STRATEGY_RULES

SIX_FAULTS = """\
task: t
regions: [eu-1]
server: {address: "127.0.0.1:8000"}
model: {name: lenet5}
data: {name: digits, shape: [1, 8, 8], classes: 10}
train: {rounds: 0, learning_rate: 0.1}
participant: {minimum: 2}
strategy: {name: fedavgg}
evaluate: {on: []}
stop: {target: 0.9}
aggregation: {regions: {us-1: {tier: central}}}
issued_at: 2026-05-01T12:00:00Z
expires_at: 2026-04-01T12:00:00Z
"""
RIGHT = {key: value for key, value in SMALL.items() if key != "issued_at"}


def fields(change: dict[str, Any]) -> set[str]:
    found = []
    for parse in (
        lambda: parse_mapping(RIGHT | change, rules=STRATEGY_RULES),
        lambda: parse_json(json.dumps(RIGHT | change), rules=STRATEGY_RULES),
    ):
        with pytest.raises(DescriptorError) as caught:
            parse()
        found.append([fault.field for fault in caught.value.faults])
    assert found[0] == found[1]
    assert len(set(found[0])) == len(found[0])
    return set(found[0])


def test_every_fault_of_a_file_is_told_in_one_go_with_its_field_and_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "task.yaml"
    path.write_text(SIX_FAULTS)
    with pytest.raises(DescriptorError) as caught:
        load(path, rules=STRATEGY_RULES)
    assert str(caught.value).splitlines() == [
        f"task file {str(path)!r}: 6 faults",
        "  - train.rounds: input should be greater than or equal to 1, got 0",
        "  - participant: is no field of it (did you mean 'participants'?)",
        "  - expires_at: must be after issued_at (2026-05-01T12:00:00+00:00), got 2026-04-01T12:00:00+00:00 "
        "(give a later time, or leave it out for 7 days)",
        "  - stop: needs an evaluation, and evaluate.on is empty (give evaluate.on, and evaluate.every of at "
        "least 1, or remove stop)",
        "  - aggregation.regions.us-1: is none of the task's regions: eu-1 (remove it, or name it in "
        "regions)",
        "  - strategy.name: 'fedavgg' is unknown: known are bulyan, fedadagrad, fedadam, fedavg, fedavgm, "
        "fedmedian, fedprox, fedtrimmedavg, fedyogi, krum, multikrum, qfedavg; did you mean 'fedavg'?",
    ]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        # Beside a misspelt field in the same part, and beside a faulty one that the rule does not need.
        ({"participants": {"minimum": 9, "maximum": 2, "quorm": 1}}, {"quorm", "minimum"}),
        ({"participants": {"minimum": 9, "maximum": 2, "quorum": 2}}, {"quorum", "minimum"}),
        # Not of a field that is faulty itself, or whose name is misspelt.
        ({"participants": {"minimum": 101, "maximum": 0}}, {"maximum"}),
        ({"participants": {"minimum": 101, "maximun": 200}}, {"maximun"}),
    ],
)
def test_a_rule_is_asked_where_the_fields_that_it_needs_are_right(
    change: dict[str, Any], told: set[str]
) -> None:
    assert fields(change) == {f"participants.{name}" for name in told}


def test_a_rule_looks_past_unknown_fields_deep_inside_what_it_needs() -> None:
    apart = {"us-1": {"tier": "central", "teir": 1, "participants": {"quorom": 1}}}
    change = {"aggregation": {"regions": apart}, "strategy": {"name": "nope", "param": {}}}
    place = "aggregation.regions.us-1"
    assert fields(change) == {
        place,  # none of the task's regions
        f"{place}.teir",
        f"{place}.participants",  # for a region that aggregates
        f"{place}.participants.quorom",
        "strategy.name",
        "strategy.param",
    }


def test_times_in_other_zones_are_compared_as_they_are_meant() -> None:
    window = {"issued_at": "2026-05-01T12:00:00+02:00", "expires_at": "2026-05-01T11:00:00Z", "x": 1}
    assert fields(window) == {"x"}
    assert fields(window | {"expires_at": "2026-05-01T10:00:00Z"}) == {"x", "expires_at"}


def test_no_strategy_is_said_to_have_too_few_members_where_their_number_is_misspelt() -> None:
    krum = {"strategy": {"name": "krum"}}
    assert fields(krum) == {"participants.minimum"}
    assert fields(krum | {"participant": {"minimum": 9}}) == {"participant"}
    assert fields(krum | {"participants": {"minimun": 9}}) == {"participants.minimun"}
    assert fields(krum | {"participants": {"minimum": 2, "zzz": 9}}) == {
        "participants.zzz",
        "participants.minimum",
    }


def test_a_reader_adds_rules_of_its_own() -> None:
    def not_that_one(task: TaskDescriptor) -> Iterator[Fault]:
        yield Fault("model.name", f"{task.model.name!r} {{remedy}} is not here", "take another")

    with pytest.raises(DescriptorError) as caught:
        parse_mapping(RIGHT, rules=[Rule(("model",), not_that_one)])
    assert [fault.field for fault in caught.value.faults] == ["model.name"]
    assert caught.value.faults[0].remedy == "take another"
    assert parse_mapping(RIGHT).model.name == "lenet5"


def test_thousands_of_unknown_fields_are_refused_soon() -> None:
    started = time.thread_time()
    with pytest.raises(DescriptorError, match="faults more"):
        parse_json(json.dumps({f"par{number}": 1 for number in range(9000)}))
    # 0.3 s of a processor; it took 2.5 s to look for what each of them was meant to be.
    assert time.thread_time() - started < 2
