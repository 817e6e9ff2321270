"""A clock for what asks `time.monotonic`: its seconds pass only when told."""

from __future__ import annotations


class HeldClock:
    """Stands in the place of a module's `time`."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now
