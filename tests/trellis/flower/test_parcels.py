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
from trellis.flower.parcels import LARGEST_BYTES, PARCEL, is_parcel, unwrap, wrap, wrapped
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
