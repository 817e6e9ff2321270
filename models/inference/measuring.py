"""What a trained model answers to a data set: how often it is right, how sure it is, how long it takes."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from models.backends.graph import padded
from models.backends.loop import Batch
from models.datasets import Dataset, check_for_model, scale
from models.datasets.dataset import Labels
from models.inference.predictor import Predictor
from trellis.errors import TrainingFailed

Values = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True, eq=False)
class Predictions:
    """The answers to a data set, in its order.

    Attributes:
        labels: (samples,) what is right.
        logits: (samples, classes) float64.
        sample_ms: Milliseconds a sample: the median over the calls, without reading and scaling.
        batch: Samples a call.
    """

    labels: Labels
    logits: Values
    sample_ms: float
    batch: int

    @cached_property
    def predicted(self) -> Labels:
        """(samples,) the class with the greatest logit."""
        told: Labels = self.logits.argmax(axis=1)
        return told

    @cached_property
    def probabilities(self) -> Values:
        """(samples, classes) the softmax of the logits."""
        return np.exp(self._log_probabilities)

    @property
    def accuracy(self) -> float:
        """The share of samples that are told right."""
        return float((self.predicted == self.labels).mean())

    @property
    def loss(self) -> float:
        """The mean cross-entropy."""
        return float(-self._log_probabilities[np.arange(len(self.labels)), self.labels].mean())

    @cached_property
    def _log_probabilities(self) -> Values:
        shifted = self.logits - self.logits.max(axis=1, keepdims=True)
        values: Values = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
        return values


def predict(predictor: Predictor, data: Dataset, *, batch: int = 1) -> Predictions:
    """Return the model's answers to data as they were read: scaling is done here.

    Args:
        predictor: The model.
        data: Not scaled yet.
        batch: Samples a call, unless the model takes a number of its own.

    Raises:
        DataError: The data cannot be fed to the model.
        TrainingFailed: The runtime failed, or an answer is not finite.
    """
    check_for_model(data, shape=predictor.shape, classes=predictor.classes)
    x = scale(data, predictor.normalize).x
    size = predictor.batch or min(batch, len(x))
    # Runtimes do work of their own at the first call.
    predictor.logits(padded(x[:size], size))
    parts, taken_ms = [], []
    for start in range(0, len(x), size):
        piece = x[start : start + size]
        begun = time.perf_counter()
        answer = predictor.logits(padded(piece, size))
        taken_ms.append((time.perf_counter() - begun) * 1000)
        parts.append(_checked(predictor, answer, size)[: len(piece)])
    logits = np.concatenate(parts).astype(np.float64)
    if not (finite := np.isfinite(logits).all(axis=1)).all():
        raise TrainingFailed(
            f"model {predictor.model!r}: its answers to {int((~finite).sum())} of {len(x)} samples of "
            f"{data.name!r} are not finite, the first is to number {int(finite.argmin())}"
        )
    return Predictions(data.y, logits, statistics.median(taken_ms) / size, size)


def _checked(predictor: Predictor, answer: Batch, size: int) -> Batch:
    due = (size, predictor.classes)
    if answer.shape != due:
        raise TrainingFailed(f"model {predictor.model!r} gives logits of shape {answer.shape}, {due} is due")
    return answer
