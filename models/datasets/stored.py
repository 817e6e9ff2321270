"""What a source of data holds, before a split is chosen, and what no source may exceed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from models.datasets.dataset import Samples
from trellis.errors import DataError

MAX_BYTES = 4 * 2**30
"""The most that one array of a file may take in memory: a header that asks for more is refused."""

MOST_FAULTS = 10
"""The most faulty cells or images that one message names."""


@dataclass(frozen=True, eq=False)
class Pair:
    """Samples (samples, *shape) and labels (samples,), of whatever types the source has."""

    x: Samples
    y: Samples

    def take(self, mask: np.ndarray[Any, Any]) -> Pair:
        return Pair(self.x[mask], self.y[mask])


@dataclass(frozen=True, eq=False)
class Stored:
    """Either `whole`, samples without a split, or `train` and `test`, of which one may be missing.

    Attributes:
        classes: How many classes the source says that there are, 0 where only its labels tell.
    """

    whole: Pair | None = None
    train: Pair | None = None
    test: Pair | None = None
    classes: int = 0


def paired(x: Samples, y: Samples, *, where: str, names: tuple[str, str]) -> Pair:
    """Return the pair.

    Raises:
        DataError: The labels are not one a sample.
    """
    if x.ndim < 2:
        raise DataError(f"data set {where!r}", f"{names[0]} has shape {x.shape}, (samples, ...) is due")
    if y.ndim != 1:
        raise DataError(f"data set {where!r}", f"{names[1]} has shape {y.shape}, (samples,) is due")
    if len(x) != len(y):
        problem = f"{names[0]} has {len(x)} samples, {names[1]} has {len(y)} labels; they must be as many"
        raise DataError(f"data set {where!r}", problem)
    return Pair(x, y)
