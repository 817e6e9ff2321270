"""Weighted means that are summed as updates arrive, so that memory stays flat in the number of devices.

    mean = Σ wᵢ·xᵢ / Σ wᵢ        (McMahan et al. 2017, Algorithm 1: wᵢ = nᵢ, the client's examples)

Sums are float64 and divided once, at the top: sums of sums compose, which is what makes a region's mean with
its summed weight exact in a hierarchy.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from trellis.errors import TensorError
from trellis.tensors import Arrays


class WeightedMean:
    """The running weighted mean of arrays and of metrics.

    Arrays come in their own dtypes, are summed in float64, and leave in the dtypes of the first update;
    integer tensors (counters of a BatchNorm) are rounded to the nearest.
    """

    def __init__(self) -> None:
        self.weight = 0.0
        self.updates = 0
        self._sums: dict[str, NDArray[np.float64]] = {}
        self._dtypes: dict[str, np.dtype[np.generic]] = {}
        self._metric_sums: dict[str, float] = {}

    def add(
        self, arrays: Mapping[str, NDArray[np.generic]], metrics: Mapping[str, float], weight: float
    ) -> None:
        """Take in one update of `weight` examples.

        Raises:
            TensorError: The weight is not positive, or the tensors are not those of the first update.
        """
        if not (np.isfinite(weight) and weight > 0):
            raise TensorError("update", f"has weight {weight!r}, due is a positive number of examples")
        if self.updates == 0:
            self._sums = {name: np.zeros(array.shape, np.float64) for name, array in arrays.items()}
            self._dtypes = {name: array.dtype for name, array in arrays.items()}
            self._metric_sums = dict.fromkeys(metrics, 0.0)
        shapes = {name: array.shape for name, array in arrays.items()}
        if shapes != {name: total.shape for name, total in self._sums.items()}:
            raise TensorError("update", "has other tensors than the round's first update")
        for name, array in arrays.items():
            self._sums[name] += np.multiply(array, weight, dtype=np.float64)
        # A metric that one device leaves out has no mean over all of them.
        self._metric_sums = {
            key: total + weight * metrics[key] for key, total in self._metric_sums.items() if key in metrics
        }
        self.weight += weight
        self.updates += 1

    def arrays(self) -> Arrays:
        """Return the mean of the arrays."""
        return {name: _cast(total / self.weight, self._dtypes[name]) for name, total in self._sums.items()}

    def metrics(self) -> dict[str, float]:
        """Return the means of the metrics that every update had."""
        return {key: total / self.weight for key, total in self._metric_sums.items()}


def _cast(mean: NDArray[np.float64], dtype: np.dtype[np.generic]) -> NDArray[np.generic]:
    if dtype.kind in "iu" or dtype.kind == "b":
        mean = np.rint(mean)
    return mean.astype(dtype)
