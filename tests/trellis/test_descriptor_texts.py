"""The text that is signed, and the schema that is published, say what the model says."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_descriptor import SMALL

from trellis.descriptor import json_schema, parse_json, parse_mapping
from trellis.errors import DescriptorError
from trellis.identifiers import PATTERN

NAMES = st.from_regex(PATTERN, fullmatch=True).filter(lambda name: name != "central")
MOMENTS = st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC))
NUMBERS = st.integers(-(10**6), 10**6) | st.floats(-1e9, 1e9).map(lambda x: x + 0.0) | st.booleans()


@st.composite
def mappings(draw: st.DrawFn) -> dict[str, Any]:
    regions = draw(st.lists(NAMES, min_size=1, max_size=4, unique=True))
    issued = draw(MOMENTS)
    value: dict[str, Any] = {
        "task": draw(NAMES),
        "revision": draw(st.integers(1, 2**31 - 1)),
        "regions": regions,
        "server": {"address": f"{draw(NAMES)}:{draw(st.integers(1, 65535))}", "tls": draw(st.booleans())},
        "model": {"name": draw(NAMES)},
        "data": {
            "name": draw(NAMES),
            "shape": draw(st.lists(st.integers(1, 99), min_size=1, max_size=4)),
            "classes": draw(st.integers(2, 99)),
            "instructions": draw(st.text(st.characters(exclude_categories=["Cs"]), max_size=20)),
        },
        "train": {
            "rounds": draw(st.integers(1, 100_000)),
            "learning_rate": draw(st.floats(1e-12, 1000)),
            "weight_decay": draw(st.floats(0, 1000)),
            "seed": draw(st.integers(0, 2**63 - 1)),
        },
        "strategy": {"params": draw(st.dictionaries(NAMES, NUMBERS, max_size=4))},
        "aggregation": {
            "regions": {
                name: {"tier": draw(st.sampled_from(["central", "regional"]))} for name in regions[1:]
            }
        },
        "evaluate": {"on": draw(st.lists(st.sampled_from(["server", "devices"]), unique=True))},
        "issued_at": issued.isoformat(),
        "expires_at": (issued + timedelta(days=1)).isoformat(),
    }
    if draw(st.booleans()):
        value["train"][draw(st.sampled_from(["local_epochs", "local_steps"]))] = draw(st.integers(1, 10_000))
    value["train"] |= draw(
        st.sampled_from([{"optimizer": "adam"}, {"optimizer": "adam", "momentum": 0}, {}])
        | st.fixed_dictionaries({"momentum": st.floats(0, 0.999), "clip_norm": st.floats(1e-9, 1e9)})
    )
    if value["evaluate"]["on"] and draw(st.booleans()):
        value["stop"] = {"target": draw(st.floats(0.1, 1)), "patience": draw(st.integers(1, 9))}
    return value


def otherwise(value: Any) -> Any:
    """Return the same with its mappings in another order."""
    if isinstance(value, dict):
        return {key: otherwise(value[key]) for key in reversed(value)}
    return value


@given(mappings())
def test_parsing_is_the_inverse_of_the_signed_text(value: dict[str, Any]) -> None:
    task = parse_mapping(value)
    assert parse_json(task.to_json()) == task
    assert parse_json(task.to_json().encode()).to_json() == task.to_json()
    assert parse_json(json.dumps(value)) == task


@given(mappings(), st.integers(-14 * 60, 14 * 60))
def test_equal_descriptors_give_equal_texts(value: dict[str, Any], minutes: int) -> None:
    task = parse_mapping(value)
    zone = timezone(timedelta(minutes=minutes))
    other = otherwise(value)
    other["issued_at"] = datetime.fromisoformat(value["issued_at"]).astimezone(zone).isoformat()
    params = other["strategy"]["params"]
    other["strategy"]["params"] = {k: float(v) if type(v) is int else v for k, v in params.items()}
    again = parse_mapping(other)
    assert again == task
    assert again.to_json() == task.to_json()
    assert again.same_work(task)


def test_the_signed_text_is_plain_json_without_nulls() -> None:
    value = json.loads(parse_mapping(SMALL).to_json())
    assert value["issued_at"] == "2026-05-01T12:00:00Z"
    assert "stop" not in value
    assert list(value)[:3] == ["version", "task", "revision"]


_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}


def fits(value: Any, schema: dict[str, Any], root: dict[str, Any]) -> bool:
    """Whether `value` meets `schema`: the keywords of JSON Schema 2020-12 that our schema uses."""
    if "$ref" in schema:
        return fits(value, root["$defs"][schema["$ref"].rpartition("/")[2]], root)
    checks: dict[str, Callable[[Any], bool]] = {
        "type": lambda due: (
            isinstance(value, _TYPES[due]) and (due == "boolean" or not isinstance(value, bool))
        ),
        "anyOf": lambda due: any(fits(value, one, root) for one in due),
        "const": lambda due: value == due,
        "enum": lambda due: value in due,
        "pattern": lambda due: re.search(due, value) is not None,
        "minLength": lambda due: len(value) >= due,
        "maxLength": lambda due: len(value) <= due,
        "minItems": lambda due: len(value) >= due,
        "maxItems": lambda due: len(value) <= due,
        "maxProperties": lambda due: len(value) <= due,
        "minimum": lambda due: value >= due,
        "maximum": lambda due: value <= due,
        "exclusiveMinimum": lambda due: value > due,
        "exclusiveMaximum": lambda due: value < due,
        "not": lambda due: not fits(value, due, root),
        "required": lambda due: set(due) <= set(value),
        "items": lambda due: all(fits(one, due, root) for one in value),
        "properties": lambda due: all(fits(value[key], due[key], root) for key in due if key in value),
        "patternProperties": lambda due: all(
            fits(value[key], due[pattern], root)
            for pattern in due
            for key in value
            if re.search(pattern, key)
        ),
        "additionalProperties": lambda due: all(
            due is not False and (due is True or fits(value[key], due, root))
            for key in value
            if key not in schema.get("properties", {})
        ),
        "propertyNames": lambda due: all(fits(key, due, root) for key in value),
    }
    silent = {"title", "description", "default", "format", "$defs", "$schema"}
    assert set(schema) <= set(checks) | silent, f"unknown keywords {set(schema) - set(checks) - silent}"
    # `type` first: the others suppose it.
    order = sorted(set(schema) & set(checks), key=lambda keyword: keyword != "type")
    return all(checks[keyword](schema[keyword]) for keyword in order)


@settings(deadline=None)
@given(mappings())
def test_the_published_schema_takes_what_the_model_takes(value: dict[str, Any]) -> None:
    schema = json_schema()
    assert fits(value, schema, schema)
    assert fits(json.loads(parse_mapping(value).to_json()), schema, schema)


@pytest.mark.parametrize(
    "change",
    [
        {"task": "No"},
        {"revision": 0},
        {"revision": "1"},
        {"regions": []},
        {"extra": 1},
        {"train": {"rounds": True, "learning_rate": 0.1}},
        {"train": {"rounds": 1}},
        {"train": {"rounds": 1, "learning_rate": 0.1, "local_epochs": 1, "local_steps": 1}},
        {"train": {"rounds": 1, "learning_rate": 0.1, "optimizer": "adam", "momentum": 0.5}},
        {"train": {"rounds": 1, "learning_rate": 0.1, "optimizer": "rmsprop"}},
        {"train": {"rounds": 1, "learning_rate": 0.1, "clip_norm": 0}},
        {"train": {"rounds": 1, "learning_rate": 0.1, "weight_decay": 1001}},
        {"data": {"name": "digits", "shape": [1, 2, 3, 4, 5], "classes": 10}},
        {"strategy": {"params": {"eta": "0.1"}}},
        {"server": {"address": "h:1", "tls": "yes"}},
        {"issued_at": 5},
    ],
)
def test_the_published_schema_refuses_what_the_model_refuses(change: dict[str, Any]) -> None:
    schema = json_schema()
    assert fits(SMALL, schema, schema)
    assert not fits(SMALL | change, schema, schema)
    with pytest.raises(DescriptorError):
        parse_mapping(SMALL | change)
