"""Where numbers stand on a chart: round ticks, and per cent of its width and height."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_LARGE = 1e300
"""Beyond it a difference of two floats may be infinite."""

_ANY = (1.0, 2.0, 2.5, 5.0)
_WHOLE = (1.0, 2.0, 5.0)


@dataclass(frozen=True)
class Rounds:
    """The horizontal axis that all charts of a page share: one slot a round."""

    first: int
    last: int

    @property
    def slot(self) -> float:
        """The width of a round's slot, per cent."""
        return 100 / (self.last - self.first + 1)

    def x(self, number: int) -> float:
        """The middle of a round's slot, per cent from the left."""
        return (number - self.first + 0.5) * self.slot

    def ticks(self) -> list[int]:
        """The rounds that are named below the chart: few enough for a telephone."""
        count = self.last - self.first + 1
        if count <= 10:
            return list(range(self.first, self.last + 1))
        step = max(1, round(_round_step((count - 1) / 5, _WHOLE)))
        return [number for number in range(self.first, self.last + 1) if number % step == 0]


@dataclass(frozen=True)
class Values:
    """The vertical axis, from its first tick to its last."""

    ticks: tuple[float, ...]
    step: float

    @classmethod
    def around(cls, values: Iterable[float], *, lowest: float = -_LARGE, highest: float = _LARGE) -> Values:
        """Return the axis that shows all of `values`; what lies beyond `lowest` or `highest` ends there."""
        known = [min(max(value, lowest), highest) for value in values]
        low, high = min(known), max(known)
        if high - low <= max(abs(low), abs(high)) * 1e-9 or high - low < 1e-200:
            pad = abs(high) * 0.1 if abs(high) > 1e-200 else 0.5
            low, high = max(low - pad, lowest), min(high + pad, highest)
        step = _round_step((high - low) / 4)
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
        return cls(tuple(number * step for number in range(first, last + 1)), step)

    @classmethod
    def from_zero(cls, values: Iterable[float], *, whole: bool = False) -> Values:
        """Return the axis for bars; with ticks at whole numbers alone if `whole`."""
        high = min(max([*values, 0.0]), _LARGE)
        high = high if high > 1e-9 else 1.0
        step = max(1.0, _round_step(high / 4, _WHOLE)) if whole else _round_step(high / 4)
        return cls(tuple(number * step for number in range(math.ceil(high / step - 1e-9) + 1)), step)

    def y(self, value: float) -> float:
        """The height of `value`, per cent from the top."""
        low, high = self.ticks[0], self.ticks[-1]
        return (high - min(max(value, low), high)) / (high - low) * 100


def plain(value: float, step: float) -> str:
    """Return a tick's number, with as many places as its step needs."""
    if value == 0:
        return "0"
    if not 1e-4 <= abs(value) < 1e6 or step < 1e-5:
        return f"{value:.3g}"
    places = max(0, -math.floor(math.log10(step) + 1e-9))
    fine = places and abs(step * 10**places - round(step * 10**places)) > 1e-6
    return f"{value:.{places + bool(fine)}f}"


def thinned(numbers: Sequence[int], most: int) -> tuple[set[int], int]:
    """Return which rounds are drawn, at most so many and the last always, and of how many each is one."""
    every = math.ceil(len(numbers) / most)
    return {*numbers[::every], *numbers[-1:]}, every


def _round_step(least: float, factors: Sequence[float] = _ANY) -> float:
    """The smallest of these factors times a power of ten that is not below `least`."""
    power = 10.0 ** math.floor(math.log10(least))
    return next((factor * power for factor in factors if factor * power >= least * (1 - 1e-9)), 10 * power)
