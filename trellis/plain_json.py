"""JSON that every reader reads alike: no key stands twice in an object."""

from __future__ import annotations

from typing import Any

from trellis.faults import shown


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object of these pairs: what `json.loads` is given as its `object_pairs_hook`.

    Raises:
        ValueError: A key stands twice: readers differ on which of the two counts.
    """
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"key {shown(key)} stands twice in one object: remove one")
        found[key] = value
    return found
