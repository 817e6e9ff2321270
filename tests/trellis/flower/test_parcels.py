"""Parcels: several records in one object, and back."""

from __future__ import annotations

import json

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from hypothesis import given
from hypothesis import strategies as st

from trellis.errors import PayloadError
from trellis.flower.parcels import (
    LARGEST_BYTES,
    PARCEL,
    from_bytes,
    is_parcel,
    to_bytes,
    unwrap,
    wrap,
    wrapped,
)
from trellis.tensors import pack_arrays, unpack_arrays

names = st.text(min_size=1, max_size=10)
finite = st.floats(allow_nan=False)
configs = st.dictionaries(
    names, st.text() | st.integers(-(2**62), 2**62) | st.booleans() | finite, max_size=4
)
metrics = st.dictionaries(names, st.integers(-(2**62), 2**62) | finite, max_size=4)


def model(floats: int = 6) -> ArrayRecord:
    return pack_arrays({"w": np.arange(floats, dtype=np.float32), "n": np.array(3, dtype=np.int64)})


def train_message() -> RecordDict:
    return RecordDict({"arrays": model(), "config": ConfigRecord({"task": "t", "round": 2, "mu": 1.0})})


@given(config=configs, metric=metrics)
def test_unwrapping_gives_back_what_was_wrapped(config: dict[str, object], metric: dict[str, float]) -> None:
    content = RecordDict(
        {"arrays": model(), "config": ConfigRecord(config), "metrics": MetricRecord(metric)}  # type: ignore[arg-type]
    )
    parcel = wrap(content)
    assert is_parcel(parcel)
    found = unwrap(parcel)
    assert list(found) == ["arrays", "config", "metrics"]
    assert dict(found["config"]) == config
    assert {k: type(v) for k, v in found["config"].items()} == {k: type(v) for k, v in config.items()}
    assert dict(found["metrics"]) == metric
    assert {k: type(v) for k, v in found["metrics"].items()} == {k: type(v) for k, v in metric.items()}
    arrays = unpack_arrays(found.array_records["arrays"])
    np.testing.assert_array_equal(arrays["w"], np.arange(6, dtype=np.float32))
    assert arrays["n"].shape == ()


def objects(content: RecordDict) -> int:
    return len(get_all_nested_objects(content)) + 1  # and the message


def test_a_parcel_is_three_objects_instead_of_six() -> None:
    content = train_message()
    assert objects(content) == 6
    assert objects(wrap(content)) == 3


@pytest.mark.parametrize(
    "content",
    [
        RecordDict({"metrics": MetricRecord({"loss": 1.0})}),
        RecordDict({"arrays": model()}),
        RecordDict({"arrays": model(LARGEST_BYTES // 4 + 1), "config": ConfigRecord({})}),
        RecordDict({"arrays": ArrayRecord({"w": Array(np.zeros(2))}), "config": ConfigRecord({})}),
        RecordDict({"config": ConfigRecord({"blob": b"\x00"}), "metrics": MetricRecord({})}),
    ],
    ids=["one record", "tensors alone", "too large", "not packed", "bytes in a config"],
)
def test_what_gains_nothing_or_cannot_be_wrapped_stays_as_it_is(content: RecordDict) -> None:
    assert wrap(content) is content
    assert unwrap(content) is content


def test_messages_that_share_a_content_share_its_parcel(monkeypatch: pytest.MonkeyPatch) -> None:
    content, other = train_message(), train_message()
    one, two, three = wrapped(
        [Message(content, 1, "train"), Message(content, 2, "train"), Message(other, 3, "train")]
    )
    assert one.content is two.content
    assert one.content is not three.content
    assert is_parcel(three.content)


@pytest.mark.parametrize(
    ("parcel", "said"),
    [
        ({}, "head"),
        ({"head": "{"}, "malformed parcel"),
        ({"head": "[" * 100_000}, "malformed parcel"),
        ({"head": json.dumps([["a", "arrays", None]])}, "arrays/a"),
        ({"head": json.dumps([["a", "arrays", None]]), "arrays/a": "text"}, "are no bytes"),
        ({"head": json.dumps([["a", "code", {}]])}, "a record of kind 'code'"),
        ({"head": json.dumps([["a", "metrics", {"loss": "high"}]])}, "malformed parcel"),
        ({"head": json.dumps([["a", "config", 7]])}, "malformed parcel"),
        ({"head": json.dumps(7)}, "malformed parcel"),
    ],
)
def test_a_malformed_parcel_is_refused(parcel: dict[str, str], said: str) -> None:
    with pytest.raises(PayloadError, match=said):
        unwrap(RecordDict({PARCEL: ConfigRecord(parcel)}))  # type: ignore[arg-type]


@given(config=configs, metric=metrics)
def test_bytes_give_back_the_content_they_were_made_of(
    config: dict[str, object], metric: dict[str, float]
) -> None:
    content = RecordDict(
        {"arrays": model(), "config": ConfigRecord(config), "metrics": MetricRecord(metric)}  # type: ignore[arg-type]
    )
    assert from_bytes(to_bytes(content)) == content
    assert from_bytes(to_bytes(RecordDict({}))) == RecordDict({})


def test_bytes_hold_a_model_that_no_parcel_holds() -> None:
    content = RecordDict({"arrays": model(LARGEST_BYTES)})
    assert from_bytes(to_bytes(content)) == content


@given(data=st.binary() | st.tuples(st.integers(0, 200), st.binary(max_size=3)))
def test_only_our_error_comes_of_bytes_that_are_malformed(data: bytes | tuple[int, bytes]) -> None:
    if isinstance(data, tuple):  # a whole one that was cut, and goes on otherwise
        data = to_bytes(train_message())[: data[0]] + data[1]
    with pytest.raises(PayloadError):
        from_bytes(data)


def test_tensors_that_are_not_packed_are_not_handed_on() -> None:
    plain = ArrayRecord({"w": Array(np.zeros(3, np.float32))})
    with pytest.raises(PayloadError, match="cannot be handed on: arrays"):
        to_bytes(RecordDict({"arrays": plain, "config": ConfigRecord({})}))
