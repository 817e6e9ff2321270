"""Named arrays: what is trained, exchanged, averaged and saved, whatever the runtime."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

import numpy as np

from trellis.errors import Fault, TensorError

Arrays: TypeAlias = dict[str, np.ndarray[Any, np.dtype[Any]]]
"""Torch's names and layout, C-contiguous: `{"fc.weight": (10, 784) float32, "fc.bias": (10,) float32}`."""


def copied(arrays: Mapping[str, np.ndarray[Any, Any]]) -> Arrays:
    """Return arrays of the same names and values that share no memory with those given."""
    # np.ascontiguousarray would make (1,) of 0-d counters such as BatchNorm's num_batches_tracked.
    return {name: np.array(array, order="C", copy=True) for name, array in arrays.items()}


def require_like(
    arrays: Mapping[str, np.ndarray[Any, Any]], model: Mapping[str, np.ndarray[Any, Any]]
) -> None:
    """Pass if `arrays` has the model's names, shapes and dtypes.

    Raises:
        TensorError: With every tensor that is missing, unknown, or of another shape or dtype.
    """
    faults = [Fault("", f"tensor {name!r} is missing, the model has it") for name in _without(model, arrays)]
    faults += [Fault("", f"tensor {name!r} is not one of the model's") for name in _without(arrays, model)]
    for name in model:
        if name not in arrays:
            continue
        came, due = arrays[name], model[name]
        if came.shape != due.shape:
            faults.append(Fault("", f"tensor {name!r} has shape {came.shape}, the model has {due.shape}"))
        elif came.dtype != due.dtype:
            faults.append(Fault("", f"tensor {name!r} is {came.dtype}, the model has {due.dtype}"))
    if faults:
        raise TensorError("the arrays do not fit the model", faults)


def require_same(arrays: Mapping[str, np.ndarray[Any, Any]], digests: Mapping[str, str]) -> None:
    """Pass if the arrays so named have those SHA-256.

    Raises:
        TensorError: With every tensor that has another.
    """
    faults = [
        Fault("", f"tensor {name!r} has other numbers than stand in the artefact", "export the model anew")
        for name, digest in digests.items()
        if hashlib.sha256(np.ascontiguousarray(arrays[name]).tobytes()).hexdigest() != digest
    ]
    if faults:
        raise TensorError("the arrays do not fit the artefact", faults)


def first_not_finite(arrays: Mapping[str, np.ndarray[Any, Any]]) -> str | None:
    """Return the name of the first array that holds a NaN or an infinity, or None."""
    for name, array in arrays.items():
        if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
            return name
    return None


def _without(names: Iterable[str], others: Mapping[str, object]) -> list[str]:
    return [name for name in names if name not in others]
