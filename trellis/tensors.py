"""Packed tensors: a set of named arrays as one Flower `Array`.

Flower sends every object of a message as one HTTP request: a model of eight tensors makes twenty of them, a
packed one six. The encoding is named by the array's `stype`; today there is one, `safetensors`: a length, a
JSON header, the raw little-endian tensors (format 0.4, huggingface/safetensors). Its header is checked
against our limits before anything is allocated, and no tensor can be larger than the bytes that came.

    pack:    ArrayRecord of numpy arrays  → ArrayRecord {"packed": Array(stype="trellis/safetensors")}
    unpack:  the other way round; TensorError for anything that is not exactly that
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from flwr.app import Array, ArrayRecord
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save as save_safetensors

from trellis.errors import TensorError

STYPE = "trellis/safetensors"
KEY = "packed"

Arrays = dict[str, NDArray[np.generic]]

_DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U64": np.uint64,
    "U32": np.uint32,
    "U16": np.uint16,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
_PACKABLE = {np.dtype(dtype) for dtype in _DTYPES.values()}


@dataclass(frozen=True)
class Limits:
    """What unpacking accepts at most.

    Attributes:
        packed_bytes: Bytes of all tensors with their header.
        header_bytes: Bytes of the JSON header, which takes many times its size once it is parsed.
        tensors: Number of tensors.
        name_chars: Characters of one tensor's name.
        axes: Axes of one tensor.
    """

    packed_bytes: int = 2 * 1024**3
    header_bytes: int = 2 * 1024**2
    tensors: int = 10_000
    name_chars: int = 256
    axes: int = 8


DEFAULT_LIMITS = Limits()


def pack_arrays(arrays: Mapping[str, NDArray[np.generic]]) -> ArrayRecord:
    """Return `arrays` as a record of one packed array; order, dtypes and shapes survive.

    Raises:
        TensorError: A dtype cannot be packed (object arrays are among those), or a name would be refused.
    """
    for name, array in arrays.items():
        _check_name(name, DEFAULT_LIMITS)
        if array.dtype not in _PACKABLE:
            raise TensorError(f"tensor {name!r}", f"has dtype {array.dtype}, which cannot be packed")
    contiguous = {name: np.ascontiguousarray(a).reshape(a.shape) for name, a in arrays.items()}
    # safetensors sorts by dtype and name; Flower's strategies rely on the caller's order.
    data = save_safetensors(contiguous, metadata={"order": json.dumps(list(arrays))})
    return ArrayRecord({KEY: Array(dtype="uint8", shape=(len(data),), stype=STYPE, data=data)})


def unpack_arrays(record: ArrayRecord, limits: Limits = DEFAULT_LIMITS) -> Arrays:
    """Return the named arrays in a packed record, in their original order.

    Raises:
        TensorError: The record is not packed, malformed, or beyond the limits.
    """
    if not is_packed(record):
        raise TensorError("packed tensors", f"expected one {STYPE!r} array, got {_described(record)}")
    data = record[KEY].data
    header = _checked_header(data, limits)
    try:
        arrays = load_safetensors(data)
    except (SafetensorError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise TensorError("packed tensors", f"are malformed: {error}") from None
    order = _order(header)
    if sorted(order) != sorted(arrays):
        raise TensorError("packed tensors", "name other tensors in their order than they hold")
    return {name: arrays[name] for name in order}


def pack(record: ArrayRecord) -> ArrayRecord:
    """Return a record of numpy arrays packed; one that is packed stays as it is."""
    if is_packed(record):
        return record
    return pack_arrays({name: array.numpy() for name, array in record.items()})


def unpack(record: ArrayRecord, limits: Limits = DEFAULT_LIMITS) -> ArrayRecord:
    """Return a packed record as one of plain numpy arrays, as Flower's strategies expect it."""
    return ArrayRecord({name: Array(array) for name, array in unpack_arrays(record, limits).items()})


def is_packed(record: ArrayRecord) -> bool:
    """Whether `record` is what `pack` makes."""
    return list(record) == [KEY] and record[KEY].stype == STYPE


def packed_bytes(record: ArrayRecord) -> int:
    """Return the bytes that a record's arrays take on the wire, without Flower's framing."""
    return sum(len(array.data) for array in record.values())


def check_like(arrays: Mapping[str, NDArray[np.generic]], model: Mapping[str, NDArray[np.generic]]) -> None:
    """Check that `arrays` can stand in for `model`: names, shapes, dtypes, and finite values.

    Raises:
        TensorError: Every tensor that does not fit is named.
    """
    faults = [f"tensor {name!r} is missing" for name in model if name not in arrays]
    faults += [f"tensor {name!r} is not in the round's model" for name in arrays if name not in model]
    for name in (name for name in model if name in arrays):
        came, due = arrays[name], model[name]
        if came.shape != due.shape:
            faults.append(f"tensor {name!r} has shape {came.shape}, the round's model has {due.shape}")
        elif came.dtype != due.dtype:
            faults.append(f"tensor {name!r} has dtype {came.dtype}, the round's model has {due.dtype}")
        elif came.dtype.kind == "f" and not np.isfinite(came).all():
            faults.append(f"tensor {name!r} holds NaN or infinity")
    if faults:
        raise TensorError("update", "; ".join(faults[:20]))


def _described(record: ArrayRecord) -> str:
    kinds = {array.stype for array in record.values()}
    return f"{len(record)} arrays of {sorted(kinds)}"


def _header(data: bytes, limits: Limits) -> dict[str, object]:
    if len(data) < 8:
        raise TensorError("packed tensors", f"have {len(data)} bytes, a header takes at least 8")
    size = int.from_bytes(data[:8], "little")
    if size > len(data) - 8:
        raise TensorError(
            "packed tensors", f"announce a header of {size} bytes, but only {len(data) - 8} came"
        )
    if size > limits.header_bytes:
        raise TensorError("packed tensors", f"have a header of {size} bytes, at most {limits.header_bytes}")
    try:
        header = json.loads(data[8 : 8 + size])
    except (ValueError, RecursionError):
        raise TensorError("packed tensors", "have a header that is not JSON") from None
    if not isinstance(header, dict):
        raise TensorError("packed tensors", "have a header that is no JSON object")
    return header


def _checked_header(data: bytes, limits: Limits) -> dict[str, object]:
    if len(data) > limits.packed_bytes:
        raise TensorError("packed tensors", f"have {len(data)} bytes, at most {limits.packed_bytes}")
    header = _header(data, limits)
    names = [name for name in header if name != "__metadata__"]
    if len(names) > limits.tensors:
        raise TensorError("packed tensors", f"hold {len(names)} tensors, at most {limits.tensors}")
    for name in names:
        _check_entry(name, header[name], limits, len(data))
    return header


def _check_name(name: str, limits: Limits) -> None:
    if not name or len(name) > limits.name_chars or not name.isprintable() or name == "__metadata__":
        raise TensorError(
            f"tensor {name[: limits.name_chars]!r}",
            f"must have a printable name of 1 to {limits.name_chars} characters, not '__metadata__'",
        )


def _check_entry(name: str, entry: object, limits: Limits, payload_bytes: int) -> None:
    _check_name(name, limits)
    shown = name
    if not isinstance(entry, dict):
        raise TensorError(f"tensor {shown!r}", "has an entry that is no JSON object")
    dtype, shape = entry.get("dtype"), entry.get("shape")
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise TensorError(f"tensor {shown!r}", f"has dtype {dtype!r}, known are {', '.join(_DTYPES)}")
    if not isinstance(shape, list) or len(shape) > limits.axes:
        raise TensorError(f"tensor {shown!r}", f"must have a shape of at most {limits.axes} axes")
    if not all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in shape):
        raise TensorError(f"tensor {shown!r}", f"has shape {shape!r}")
    if math.prod(shape) * np.dtype(_DTYPES[dtype]).itemsize > payload_bytes:
        raise TensorError(f"tensor {shown!r}", f"has shape {shape!r}, more than the bytes that came")


def _order(header: dict[str, object]) -> list[str]:
    metadata = header.get("__metadata__")
    text = metadata.get("order") if isinstance(metadata, dict) else None
    try:
        order = json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError):
        order = None
    if not isinstance(order, list) or not all(isinstance(name, str) for name in order):
        raise TensorError("packed tensors", "do not say the order of their tensors")
    return order
