"""A data set in memory, its scaling, and its check against what a task demands."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from trellis.errors import DataError, Fault

Samples = np.ndarray[Any, np.dtype[Any]]
Labels = np.ndarray[Any, np.dtype[np.int64]]
Indices = np.ndarray[Any, np.dtype[np.intp]]


class Normalization(Protocol):
    """Mean and standard deviation of a task's samples in [0, 1]; a descriptor's `data.normalize` is one."""

    @property
    def mean(self) -> float: ...

    @property
    def std(self) -> float: ...


@dataclass(frozen=True)
class Normalize:
    """A `Normalization` that came from somewhere else than a descriptor."""

    mean: float
    std: float


@dataclass(frozen=True, eq=False)
class Dataset:
    """Samples with their labels.

    Attributes:
        name: What the data are (`mnist`), which a task's `data.name` must equal.
        x: (samples, *shape), uint8 as stored, or float32.
        y: (samples,) int64, from 0 to classes - 1.
        classes: How many classes the source has, which a part of it may not all hold.
    """

    name: str
    x: Samples
    y: Labels
    classes: int

    def __len__(self) -> int:
        return len(self.y)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one sample."""
        return tuple(self.x.shape[1:])

    def take(self, indices: Indices) -> Dataset:
        """Return the data set of those samples, in that order, copied."""
        return replace(self, x=self.x[indices], y=self.y[indices])


def members_by_label(y: Labels) -> list[tuple[int, Indices]]:
    """Return every label that there is, in order, with the samples that have it, in theirs."""
    order = np.argsort(y, kind="stable")
    labels, starts = np.unique(y[order], return_index=True)
    return list(zip(labels.tolist(), np.split(order, starts)[1:], strict=True))


def scale(dataset: Dataset, normalize: Normalization | None) -> Dataset:
    """Return the data set as backends want it: float32, uint8 / 255, float as is, then (x - mean) / std."""
    x = dataset.x.astype(np.float32)
    if dataset.x.dtype == np.uint8:
        x /= np.float32(255)
    if normalize is not None:
        if not (np.isfinite(normalize.mean) and np.isfinite(normalize.std) and normalize.std > 0):
            problem = (
                f"mean {normalize.mean} and std {normalize.std} came, both must be finite and std above 0"
            )
            raise DataError(f"data set {dataset.name!r}", [Fault("data.normalize", problem)])
        x -= np.float32(normalize.mean)
        x /= np.float32(normalize.std)
    return replace(dataset, x=x)


def check(dataset: Dataset, *, name: str, shape: tuple[int, ...], classes: int, min_samples: int) -> None:
    """Pass if the data set meets a task's demands.

    Raises:
        DataError: With every demand that it misses.
    """
    faults = []
    if dataset.name != name:
        remedy = f"if it is the right data, name it: --data {name}=PATH"
        faults.append(Fault("data.name", f"holds {dataset.name!r}, the task wants {name!r}", remedy))
    faults += _misfits(dataset, shape, classes, "the task")
    if len(dataset) < min_samples:
        problem = f"holds {len(dataset)} samples, the task wants at least {min_samples}"
        faults.append(Fault("data.min_samples", problem))
    if faults:
        raise DataError(f"data set {dataset.name!r}", faults)


def check_for_model(dataset: Dataset, *, shape: tuple[int, ...], classes: int) -> None:
    """Pass if a trained model of that shape and those classes can answer to the data.

    Raises:
        DataError: With everything that keeps it from that.
    """
    faults = [*_misfits(dataset, shape, classes, "the model")]
    if not len(dataset):
        faults.append(Fault("", "holds no samples", "give data that hold some"))
    if faults:
        raise DataError(f"data set {dataset.name!r}", faults)


def _misfits(dataset: Dataset, shape: tuple[int, ...], classes: int, who: str) -> Iterator[Fault]:
    """Yield what of shape, labels and numbers is not as `who` wants it."""
    if dataset.shape != shape:
        yield Fault("data.shape", f"samples have shape {dataset.shape}, {who} wants {shape}")
    if len(dataset) and (dataset.y.min() < 0 or dataset.y.max() >= classes):
        problem = f"labels run from {dataset.y.min()} to {dataset.y.max()}, {who} wants 0 to {classes - 1}"
        yield Fault("data.classes", problem)
    if np.issubdtype(dataset.x.dtype, np.floating) and len(dataset):
        # One flag a sample, so that the message counts what a person would look for.
        bad = ~np.isfinite(dataset.x).reshape(len(dataset), -1).all(axis=1)
        if bad.any():
            problem = (
                f"{int(bad.sum())} samples hold NaN or infinity, the first is number {int(bad.argmax())}"
            )
            yield Fault("data", problem)
