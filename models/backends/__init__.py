"""Training backends: one Protocol, one module each, imported only when it is opened.

A backend keeps nothing between calls: arrays go in, arrays come out; the same arguments give the same result.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, cast

import numpy as np

from models.arrays import Arrays
from models.backends.plan import EvalResult, StepReport, TrainPlan, TrainResult
from models.datasets import Dataset
from models.registry import ModelSpec, find_model
from trellis.errors import ConfigError, MissingExtra

__all__ = [
    "Backend",
    "EvalResult",
    "StepReport",
    "TrainPlan",
    "TrainResult",
    "available_backends",
    "open_backend",
]


class Backend(Protocol):
    """A model that one runtime trains and evaluates.

    `should_stop` is asked before every batch. Data are float32 as `models.datasets.scale` gives them.
    """

    name: str

    def initial(self) -> Arrays:
        """Return the parameters and buffers that training starts from: a function of model and seed only."""

    def train(
        self,
        arrays: Arrays,
        data: Dataset,
        plan: TrainPlan,
        rng: np.random.Generator,
        *,
        on_step: Callable[[StepReport], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> TrainResult:
        """Return what `plan` makes of `arrays`, which stay as they are.

        Raises:
            TensorError: `arrays` are not the model's.
            DataError: `data` cannot be fed to the model.
            TrainingFailed: The loss or a parameter is no longer finite, or the runtime failed.
            Canceled: `should_stop` said so.
        """

    def evaluate(
        self,
        arrays: Arrays,
        data: Dataset,
        *,
        batch_size: int = 256,
        should_stop: Callable[[], bool] | None = None,
    ) -> EvalResult:
        """Return the mean loss and the accuracy of `arrays` on `data`; raises as `train` does."""


class _BackendModule(Protocol):
    def open_model(self, spec: ModelSpec, *, shape: tuple[int, ...], classes: int, seed: int) -> Backend: ...


@dataclass(frozen=True)
class _Entry:
    module: str  # has open_model(spec, *, shape, classes, seed) -> Backend
    package: str  # what must be importable
    extra: str  # of trellis-fl, which brings the package


_BACKENDS = {"torch": _Entry("models.backends.torch", package="torch", extra="torch")}


def available_backends() -> list[str]:
    """Return the backends whose runtime is installed; none is imported."""
    return [name for name, entry in _BACKENDS.items() if importlib.util.find_spec(entry.package) is not None]


def open_backend(name: str, model: str, *, shape: tuple[int, ...], classes: int, seed: int) -> Backend:
    """Return the backend of that name with the model built in it.

    Args:
        name: `torch`.
        model: A name that `models.registry.find_model` knows.
        shape: The shape of one sample.
        classes: How many classes the model tells apart.
        seed: The task's; `initial` follows from it.

    Raises:
        ConfigError: No such backend.
        MissingExtra: Its runtime is not installed.
        Refused: No such model.
        InvalidInput: The model does not take such samples.
    """
    entry = _BACKENDS.get(name)
    if entry is None:
        raise ConfigError(f"backend {name[:80]!r}", f"is not known; known are {', '.join(_BACKENDS)}")
    if importlib.util.find_spec(entry.package) is None:
        raise MissingExtra(entry.package, entry.extra)
    spec = find_model(model)
    module = cast(_BackendModule, importlib.import_module(entry.module))
    return module.open_model(spec, shape=shape, classes=classes, seed=seed)
