"""Local training and evaluation of one task, on this device's own data."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from models.arrays import Arrays
from models.backends import Backend, StepReport, TrainPlan, open_backend
from models.datasets import Dataset, scale
from models.exported import MAX_ARTEFACT_BYTES
from trellis.descriptor import TaskDescriptor
from trellis.errors import ArtefactError, InvalidInput, Refused, TensorError, TrainingFailed
from trellis.seeds import generator
from trellis.tensors import check_like


@dataclass(frozen=True)
class Request:
    """What a message asks for; everything else stands in the signed descriptor."""

    round: int
    proximal_mu: float = 0.0
    report_initial_loss: bool = False


@dataclass(frozen=True)
class Trained:
    """An update, and what the server's strategy wants to know of it."""

    arrays: Arrays
    metrics: dict[str, int | float]


class Trainer:
    """One task's model and data; used from the thread that opened it.

    Attributes:
        misfit: Why its artefact is not of the model that the task trains; None as far as is known.
    """

    def __init__(
        self,
        descriptor: TaskDescriptor,
        backend: Backend,
        data: Dataset,
        *,
        region: str,
        device: str,
        artefact: Path | None = None,
    ) -> None:
        self._train = descriptor.train
        self._artefact = artefact
        self.misfit: ArtefactError | None = None
        self._fits = False
        self._strange: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] | None = None  # what did not, last
        self._backend = backend
        self._data = data
        self._scope = (region, device)

    @classmethod
    def open(
        cls,
        descriptor: TaskDescriptor,
        data: Dataset,
        *,
        backend: str,
        region: str,
        device: str,
        threads: int,
        artefact: Path | None = None,
        artefact_bytes: int = MAX_ARTEFACT_BYTES,
    ) -> Trainer:
        """Return the trainer of a task whose demands `data` meet.

        Args:
            descriptor: The task.
            data: The device's own.
            backend: What trains.
            region: The device's region.
            device: Its name.
            threads: Processor threads that training may use.
            artefact: What the backend trains from, if it does not build the model itself.
            artefact_bytes: How large that may be.

        Raises:
            ArtefactError: `artefact` is not what the task trains.
            MissingExtra: The backend is not installed.
            Refused: The model is not known, or does not take such samples (code `model`).
        """
        try:
            opened = open_backend(
                backend,
                descriptor.model.name,
                shape=descriptor.data.shape,
                classes=descriptor.data.classes,
                seed=descriptor.train.seed,
                artefact=artefact,
                artefact_bytes=artefact_bytes,
                threads=threads,
            )
        except ArtefactError:
            raise
        except InvalidInput as error:
            raise Refused("model", str(error)) from error
        scaled = scale(data, descriptor.data.normalize)
        return cls(descriptor, opened, scaled, region=region, device=device, artefact=artefact)

    @property
    def samples(self) -> int:
        """How many samples this device trains on."""
        return len(self._data)

    def train(
        self,
        arrays: Arrays,
        request: Request,
        *,
        on_step: Callable[[StepReport], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> Trained:
        """Return what local training makes of the round's model.

        Raises:
            TensorError: `arrays` are not the model's.
            ArtefactError: Nor were the last, and the artefact is not of the model that both are.
            TrainingFailed: The result is not finite, or the runtime failed.
            Canceled: `should_stop` said so.
        """
        plan = TrainPlan(
            epochs=self._train.local_epochs,
            steps=self._train.local_steps,
            batch_size=self._train.batch_size,
            learning_rate=self._train.learning_rate,
            momentum=self._train.momentum,
            weight_decay=self._train.weight_decay,
            optimizer=self._train.optimizer,
            clip_norm=self._train.clip_norm,
            proximal_mu=request.proximal_mu,
            report_initial_loss=request.report_initial_loss,
        )
        rng = generator(self._train.seed, "train", *self._scope, request.round)
        began = time.monotonic()
        with self._fitting(arrays):
            result = self._backend.train(
                arrays, self._data, plan, rng, on_step=on_step, should_stop=should_stop
            )
        try:
            check_like(result.arrays, arrays)
        except TensorError as error:
            raise TrainingFailed(f"the trained model cannot be averaged: {error}") from error
        metrics: dict[str, int | float] = {
            "num-examples": result.samples,
            "train_loss": result.loss,
            "train_accuracy": result.accuracy,
            "duration_s": time.monotonic() - began,
        }
        if request.report_initial_loss:
            if result.initial_loss is None:
                raise TrainingFailed(f"backend {self._backend.name!r} did not measure the initial loss")
            metrics |= {"train_loss": result.initial_loss, "final_loss": result.loss}
        return Trained(result.arrays, _finite(metrics))

    def evaluate(
        self, arrays: Arrays, *, should_stop: Callable[[], bool] | None = None
    ) -> dict[str, int | float]:
        """Return loss and accuracy of `arrays` on the device's data.

        Raises:
            TensorError: `arrays` are not the model's.
            ArtefactError: Nor were the last, and the artefact is not of the model that both are.
            TrainingFailed: The loss is not finite, or the runtime failed.
            Canceled: `should_stop` said so.
        """
        with self._fitting(arrays):
            result = self._backend.evaluate(arrays, self._data, should_stop=should_stop)
        return _finite(
            {"num-examples": result.samples, "eval_loss": result.loss, "eval_accuracy": result.accuracy}
        )

    @contextmanager
    def _fitting(self, arrays: Arrays) -> Iterator[None]:
        """Tell an artefact that is wrong from a message that is: neither of them was signed.

        What has fitted once is the task's. Else one message may be wrong, two that ask for the same are not.
        """
        try:
            yield
        except TensorError as error:
            form = {name: (array.shape, array.dtype) for name, array in arrays.items()}
            consistent, self._strange = form == self._strange, form
            if self._artefact is None or self._fits or not consistent:
                raise
            problem = f"is not of the model that the task trains: {error}"
            self.misfit = ArtefactError(f"artefact {self._artefact.name[:12]}…", problem)
            raise self.misfit from None
        self._fits = True


def _finite(metrics: dict[str, int | float]) -> dict[str, int | float]:
    broken = [name for name, value in metrics.items() if not math.isfinite(value)]
    if broken:
        raise TrainingFailed(f"metrics {', '.join(broken)} are not finite")
    return metrics
