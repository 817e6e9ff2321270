"""What a strategy carries from round to round, as named arrays: so that checkpoints can hold it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord

from trellis.tensors import Arrays
from trellis.tier.strategy_table import Form


def strategy_state(strategy: object, attributes: Iterable[str]) -> dict[str, Arrays]:
    """Return the named arrays that a strategy carries from round to round; those not yet set are left out.

    Arrays that a strategy holds by position are named by it.
    """
    found = {name: _named(getattr(strategy, name)) for name in attributes}
    return {name: arrays for name, arrays in found.items() if arrays}


def restore_strategy(strategy: object, state: Mapping[str, Arrays], forms: Mapping[str, Form]) -> None:
    """Give a strategy what `strategy_state` said of it, in its own forms; what that left out is unset."""
    for name, form in forms.items():
        setattr(strategy, name, _formed(state[name], form) if name in state else None)


def _named(held: Any) -> Arrays:
    # Arrays that a strategy holds in whatever form it likes: this is Flower's side.
    if not held:
        return {}
    if isinstance(held, ArrayRecord):
        return {name: array.numpy() for name, array in held.items()}
    if isinstance(held, list):
        return {f"{position:06d}": np.asarray(array) for position, array in enumerate(held)}
    return {name: np.asarray(array) for name, array in held.items()}


def _formed(arrays: Arrays, form: Form) -> object:
    if form == "record":
        return ArrayRecord({name: Array(np.asarray(array)) for name, array in arrays.items()})
    if form == "list":
        return [arrays[position] for position in sorted(arrays)]
    return dict(arrays)
