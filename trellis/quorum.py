"""How many are selected for a round, and how many replies close it: one rule for all who ask."""

from __future__ import annotations

import math


def selected_count(fraction: float, members: int) -> int:
    """Return how many of `members` a round selects: m = max(C·K, 1) (McMahan et al. 2017, Algorithm 1)."""
    return max(1, int(fraction * members + 1e-9))


def quorum_count(quorum: float, slots: int) -> int:
    """Return how many replies a quorum needs, at least 1. 0.8 of 10 is 8, whatever floats make of it."""
    return max(1, math.ceil(round(quorum * slots, 9)))
