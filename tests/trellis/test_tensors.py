"""Packed tensors: what is packed comes back the same; what is malformed is refused, and costs little."""

from __future__ import annotations

import json
import math
import tracemalloc
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from trellis.errors import TensorError
from trellis.tensors import (
    KEY,
    STYPE,
    Arrays,
    Limits,
    check_like,
    is_packed,
    pack,
    pack_arrays,
    packed_bytes,
    unpack,
    unpack_arrays,
)

DTYPES = ["f8", "f4", "f2", "i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1", "?"]
NAMES = st.text(st.characters(categories=["L", "N", "P"]), min_size=1, max_size=12).filter(
    lambda n: n != "__metadata__"
)
ARRAYS = st.dictionaries(
    NAMES,
    st.sampled_from(DTYPES).flatmap(
        lambda dtype: hnp.arrays(
            np.dtype(dtype), hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=3)
        )
    ),
    max_size=5,
)


def raw(data: bytes) -> ArrayRecord:
    return ArrayRecord({KEY: Array(dtype="uint8", shape=(len(data),), stype=STYPE, data=data)})


def built(header: Any, payload: bytes = b"", *, size: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if size is None else size).to_bytes(8, "little") + text + payload


def entry(dtype: str = "F32", shape: Any = (1,), offsets: Any = (0, 4)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def named(*names: str) -> dict[str, str]:
    return {"order": json.dumps(names)}


def same(one: Arrays, other: Arrays) -> bool:
    return list(one) == list(other) and all(
        one[name].dtype == other[name].dtype
        and one[name].shape == other[name].shape
        and one[name].tobytes() == other[name].tobytes()
        for name in one
    )


@given(ARRAYS)
def test_unpacking_is_the_inverse_of_packing(arrays: Arrays) -> None:
    assert same(unpack_arrays(pack_arrays(arrays)), arrays)


def test_names_keep_the_callers_order_through_flower_records() -> None:
    record = ArrayRecord({name: Array(np.arange(n, dtype=np.float32)) for n, name in enumerate("zmab")})
    packed = pack(record)
    assert is_packed(packed)
    assert not is_packed(record)
    assert pack(packed) is packed
    assert list(unpack(packed)) == ["z", "m", "a", "b"]
    assert unpack(packed)["b"].numpy().tolist() == [0.0, 1.0, 2.0]
    assert packed_bytes(packed) == len(packed[KEY].data)


def test_views_are_packed_as_what_they_show() -> None:
    matrix = np.arange(12, dtype=np.int64).reshape(3, 4)
    views = {
        "transposed": matrix.T,
        "every other": matrix[:, ::2],
        "reversed": matrix[::-1],
        "one": matrix[1, 2],
    }
    arrays = {name: np.asarray(view) for name, view in views.items()}
    unpacked = unpack_arrays(pack_arrays(arrays))
    assert {name: array.tolist() for name, array in unpacked.items()} == {
        "transposed": [[0, 4, 8], [1, 5, 9], [2, 6, 10], [3, 7, 11]],
        "every other": [[0, 2], [4, 6], [8, 10]],
        "reversed": [[8, 9, 10, 11], [4, 5, 6, 7], [0, 1, 2, 3]],
        "one": 6,
    }


def test_nan_and_infinity_pass_the_packing_untouched() -> None:
    (array,) = unpack_arrays(pack_arrays({"x": np.array([np.nan, np.inf, -0.0])})).values()
    assert math.isnan(float(array[0]))
    assert (float(array[1]), math.copysign(1, float(array[2]))) == (math.inf, -1.0)


@pytest.mark.parametrize("dtype", ["O", "c8", "U3", "S3", "M8[s]", ">f4", ">i8"])
def test_a_dtype_that_cannot_travel_is_refused_when_packed(dtype: str) -> None:
    with pytest.raises(TensorError, match=r"tensor 'w': has dtype .*, which cannot be packed"):
        pack_arrays({"w": np.zeros(2, dtype)})


@pytest.mark.parametrize("name", ["", "__metadata__", "a\n", "x" * 257, "\ud800", "\0"])
def test_a_name_that_would_not_be_unpacked_is_not_packed(name: str) -> None:
    with pytest.raises(TensorError, match="must have a printable name"):
        pack_arrays({name: np.zeros(1)})


HEAD = {"__metadata__": named("w")}
GOOD = built(HEAD | {"w": entry()}, b"\0\0\x80?")


def test_the_example_that_the_malformed_ones_derive_from_is_good() -> None:
    assert unpack_arrays(raw(GOOD))["w"].tolist() == [1.0]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "have 0 bytes, a header takes at least 8"),
        (b"\0" * 7, "have 7 bytes"),
        (b"\0" * 8, "header that is not JSON"),
        (GOOD[:-1], "are malformed"),
        (GOOD + b"\0", "are malformed"),
        (GOOD[:20], "announce a header of"),
        (built({}, size=2**63), "announce a header of 9223372036854775808 bytes, but only 2 came"),
        (built({}, size=2**64 - 1), "announce a header of 18446744073709551615 bytes"),
        (built(b"[" * 100_000), "header that is not JSON"),
        (built(b"[" + b"[]," * 1_000_000 + b"[]]"), "have a header of 3000004 bytes, at most 2097152"),
        (built(b"\xff\xff"), "header that is not JSON"),
        (built([1]), "header that is no JSON object"),
        (built({"w": entry()}, b"\0" * 4), "do not say the order"),
        (built({"__metadata__": {"order": "["}, "w": entry()}, b"\0" * 4), "do not say the order"),
        (built({"__metadata__": {"order": "[1]"}, "w": entry()}, b"\0" * 4), "do not say the order"),
        (built({"__metadata__": {"order": "5"}, "w": entry()}, b"\0" * 4), "do not say the order"),
        (built({"__metadata__": named("v"), "w": entry()}, b"\0" * 4), "name other tensors in their order"),
        (built({"__metadata__": named("w", "w"), "w": entry()}, b"\0" * 4), "name other tensors"),
        (built({"w": [1]}), "tensor 'w': has an entry that is no JSON object"),
        (built({"w": {}}), "tensor 'w': has dtype None, known are F64, F32"),
        (built({"w": entry("BF16", (2,))}, b"\0" * 4), "tensor 'w': has dtype 'BF16'"),
        (built({"w": entry("C64")}), "tensor 'w': has dtype 'C64'"),
        (built({"w": entry(shape=5)}), "must have a shape of at most 8 axes"),
        (built({"w": entry(shape=[1] * 9)}, b"\0" * 4), "must have a shape of at most 8 axes"),
        (built({"w": entry(shape=[-1])}), r"tensor 'w': has shape \[-1\]"),
        (built({"w": entry(shape=[True])}), r"has shape \[True\]"),
        (built({"w": entry(shape=[1.0])}), r"has shape \[1.0\]"),
        (built({"w": entry(shape=[2**40, 2**40])}), "more than the bytes that came"),
        (built(HEAD | {"w": entry(shape=[0, 2**70], offsets=[0, 0])}), "are malformed"),
        (built(HEAD | {"w": entry(offsets=[0, 8])}, b"\0" * 4), "are malformed"),
        (built(HEAD | {"w": entry(offsets=[4, 0])}, b"\0" * 4), "are malformed"),
        (built(HEAD | {"w": entry(offsets=[-4, 0])}, b"\0" * 4), "are malformed"),
        (built(HEAD | {"w": {"dtype": "F32", "shape": [1]}}, b"\0" * 4), "are malformed"),
        (built({"__metadata__": named("v", "w"), "v": entry(), "w": entry()}, b"\0" * 4), "are malformed"),
        (built({"w" * 257: entry()}, b"\0" * 4), "must have a printable name of 1 to 256 characters"),
        (built({"": entry()}, b"\0" * 4), "must have a printable name"),
        (built({"a\u202eb": entry()}, b"\0" * 4), "must have a printable name"),
    ],
)  # fmt: skip
def test_what_is_malformed_is_refused_and_said(data: bytes, message: str) -> None:
    with pytest.raises(TensorError, match=message) as caught:
        unpack_arrays(raw(data))
    assert len(str(caught.value)) < 1000


def test_a_name_given_twice_is_refused() -> None:
    text = json.dumps({"__metadata__": named("w"), "w": entry()}).encode()[:-1]
    twice = text + b', "w": ' + json.dumps(entry(offsets=[4, 8])).encode() + b"}"
    with pytest.raises(TensorError, match="are malformed"):
        unpack_arrays(raw(built(twice, b"\0" * 8)))


def test_limits_are_kept() -> None:
    data = raw(GOOD)
    with pytest.raises(TensorError, match=f"have {len(GOOD)} bytes, at most 10"):
        unpack_arrays(data, Limits(packed_bytes=10))
    with pytest.raises(TensorError, match="hold 1 tensors, at most 0"):
        unpack_arrays(data, Limits(tensors=0))
    with pytest.raises(TensorError, match="at most 0 axes"):
        unpack_arrays(data, Limits(axes=0))


@pytest.mark.parametrize(
    "record",
    [
        ArrayRecord({}),
        ArrayRecord({KEY: Array(np.zeros(2))}),
        ArrayRecord({"other": pack_arrays({"w": np.zeros(1)})[KEY]}),
        ArrayRecord({KEY: pack_arrays({"w": np.zeros(1)})[KEY], "more": Array(np.zeros(1))}),
    ],
)
def test_a_record_that_is_not_packed_is_refused(record: ArrayRecord) -> None:
    with pytest.raises(TensorError, match=r"expected one 'trellis/safetensors' array, got \d arrays of"):
        unpack_arrays(record)


@pytest.mark.parametrize(
    "data",
    [
        built({"w": entry("F64", [2**31, 2**20])}, b"\0" * 1_000_000),
        built({}, b"\0" * 1_000_000, size=2**40),
        built(HEAD | {"w": entry(offsets=[0, 2**50])}, b"\0" * 1_000_000),
        built({"__metadata__": {"order": "[" + "1," * 400_000 + "1]"}, "w": entry()}, b"\0" * 4),
        built({str(n): entry() for n in range(20_000)}, b"\0" * 4),
    ],
)
def test_a_refusal_allocates_no_more_than_a_small_multiple_of_what_came(data: bytes) -> None:
    record = raw(data)
    tracemalloc.start()
    try:
        with pytest.raises(TensorError):
            unpack_arrays(record)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # Python objects of a JSON header take at most some twenty times its text.
    assert peak < 25 * len(data)


@settings(deadline=None)
@given(
    st.binary(max_size=300)
    | st.tuples(st.integers(0, len(GOOD) - 1), st.binary(min_size=1, max_size=4)).map(
        lambda cut: GOOD[: cut[0]] + cut[1] + GOOD[cut[0] + len(cut[1]) :]
    )
)
def test_only_tensor_errors_come_out_of_any_bytes(data: bytes) -> None:
    try:
        arrays = unpack_arrays(raw(data))
    except TensorError:
        return
    assert sum(array.nbytes for array in arrays.values()) <= len(data)


@given(st.dictionaries(NAMES | st.just("__metadata__"), st.fixed_dictionaries({
    "dtype": st.sampled_from(["F32", "I8", "BOOL", "X", 1]),
    "shape": st.lists(st.integers(-1, 3) | st.just(2**64), max_size=3) | st.none(),
    "data_offsets": st.lists(st.integers(-1, 9), max_size=3),
}), max_size=3), st.binary(max_size=9))  # fmt: skip
def test_only_tensor_errors_come_out_of_any_header(header: dict[str, Any], payload: bytes) -> None:
    header.setdefault("__metadata__", named(*(name for name in header if name != "__metadata__")))
    try:
        unpack_arrays(raw(built(header, payload)))
    except TensorError as error:
        str(error).encode()


def test_an_update_like_the_model_passes() -> None:
    model: Arrays = {"w": np.ones((2, 3), np.float32), "n": np.array(7)}
    check_like({"n": np.array(8), "w": np.zeros((2, 3), np.float32)}, model)


def test_an_update_that_cannot_stand_in_for_the_model_is_refused_with_every_fault() -> None:
    model: Arrays = {
        name: np.zeros(2, np.float32) for name in ("gone", "shape", "dtype", "nan", "inf", "good")
    }
    came: Arrays = {
        "shape": np.zeros((2, 1), np.float32),
        "dtype": np.zeros(2, np.float64),
        "nan": np.array([0, np.nan], np.float32),
        "inf": np.array([np.inf, 0], np.float32),
        "good": np.zeros(2, np.float32),
        "more": np.zeros(2, np.float32),
    }
    with pytest.raises(TensorError) as caught:
        check_like(came, model)
    assert str(caught.value) == "update: " + "; ".join(
        [
            "tensor 'gone' is missing",
            "tensor 'more' is not in the round's model",
            "tensor 'shape' has shape (2, 1), the round's model has (2,)",
            "tensor 'dtype' has dtype float64, the round's model has float32",
            "tensor 'nan' holds NaN or infinity",
            "tensor 'inf' holds NaN or infinity",
        ]
    )
