"""A clock for what asks `time.monotonic`: its seconds pass only when told."""

from __future__ import annotations

from types import ModuleType
from typing import Self

import pytest


class HeldClock:
    """Stands in the place of a module's `time`."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    @classmethod
    def of(cls, module: ModuleType, monkeypatch: pytest.MonkeyPatch, now: float = 1000.0) -> Self:
        """Return one that a module goes by until the test ends."""
        made = cls(now)
        monkeypatch.setattr(module, "time", made)
        return made

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now
