"""The loops over mini-batches that every backend shares: order, stopping, reports, losses gone wrong."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from models.arrays import Arrays, first_not_finite
from models.backends.optimiser import LocalOptimiser
from models.backends.plan import EvalResult, StepReport, TrainPlan
from models.datasets import Dataset
from trellis.errors import Canceled, DataError, Fault, TrainingFailed

Batch = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Outcome:
    """What a model says of one mini-batch: its mean loss and how many answers are right."""

    loss: float
    correct: int


@dataclass(frozen=True)
class GradientOutcome(Outcome):
    """An outcome with the gradient of the mean loss by parameter, whose memory is the optimiser's to use."""

    gradients: Mapping[str, np.ndarray[Any, Any]]


@dataclass(frozen=True)
class LoopResult:
    """Mean loss and accuracy over the last pass, and the steps done."""

    loss: float
    accuracy: float
    steps: int


def train_loop(
    parameters: Arrays,
    data: Dataset,
    plan: TrainPlan,
    rng: np.random.Generator,
    gradient: Callable[[Batch, Batch], GradientOutcome],
    *,
    on_step: Callable[[StepReport], None] | None,
    should_stop: Callable[[], bool] | None,
) -> LoopResult:
    """Change `parameters` in place as the plan says; `gradient(x, y)` is taken where they stand.

    Raises:
        TrainingFailed: A loss is not finite.
        Canceled: `should_stop` said so.
    """
    per_pass = math.ceil(len(data) / plan.batch_size)
    steps = plan.steps if plan.steps is not None else (plan.epochs or 0) * per_pass
    optimiser = LocalOptimiser(parameters, plan)
    last_pass: deque[tuple[float, int, int]] = deque(maxlen=per_pass)
    seen = 0
    for step, chosen in enumerate(_shuffled(len(data), plan.batch_size, steps, rng), start=1):
        if should_stop is not None and should_stop():
            raise Canceled(f"training was called off before step {step} of {steps}")
        outcome = gradient(data.x[chosen], data.y[chosen])
        if not math.isfinite(outcome.loss):
            raise TrainingFailed(
                f"step {step} of {steps}: the loss is {outcome.loss}; a lower learning rate than "
                f"{plan.learning_rate} may help"
            )
        optimiser.step(outcome.gradients)
        seen += len(chosen)
        last_pass.append((outcome.loss * len(chosen), outcome.correct, len(chosen)))
        if on_step is not None:
            epoch, epochs = math.ceil(step / per_pass), math.ceil(steps / per_pass)
            on_step(StepReport(epoch, epochs, step, steps, outcome.loss, seen))
    losses, correct, counts = zip(*last_pass, strict=True)
    return LoopResult(math.fsum(losses) / sum(counts), sum(correct) / sum(counts), steps)


def evaluate_loop(
    data: Dataset,
    batch_size: int,
    score: Callable[[Batch, Batch], Outcome],
    *,
    should_stop: Callable[[], bool] | None,
) -> EvalResult:
    """Return the mean of `score(x, y)` over the data, in its order.

    Raises:
        TrainingFailed: A loss is not finite.
        Canceled: `should_stop` said so.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size {batch_size} came, at least 1 is due")
    losses, correct = [], 0
    for start in range(0, len(data), batch_size):
        if should_stop is not None and should_stop():
            raise Canceled(f"evaluation was called off before sample {start} of {len(data)}")
        x, y = data.x[start : start + batch_size], data.y[start : start + batch_size]
        outcome = score(x, y)
        if not math.isfinite(outcome.loss):
            span = f"samples {start} to {start + len(y) - 1}"
            raise TrainingFailed(f"evaluation: the loss on {span} of {data.name!r} is {outcome.loss}")
        losses.append(outcome.loss * len(y))
        correct += outcome.correct
    return EvalResult(math.fsum(losses) / len(data), correct / len(data), len(data))


def require_finite(arrays: Arrays, *, model: str, steps: int, plan: TrainPlan) -> None:
    """Pass if what the plan's steps made of a model is finite.

    Raises:
        TrainingFailed: It is not; a tensor is named.
    """
    if (broken := first_not_finite(arrays)) is not None:
        raise TrainingFailed(
            f"model {model!r}: tensor {broken!r} is not finite after step {steps}; a lower learning rate "
            f"than {plan.learning_rate} may help"
        )


def require_feedable(data: Dataset, *, shape: tuple[int, ...], classes: int) -> None:
    """Pass if a model of that shape and those classes can be fed with the data.

    Raises:
        DataError: With everything that stands against it.
    """
    faults = []
    if not len(data):
        faults.append(Fault("", "holds no samples"))
    elif data.y.min() < 0 or data.y.max() >= classes:
        problem = f"labels run from {data.y.min()} to {data.y.max()}, the model has {classes} classes"
        faults.append(Fault("", problem))
    if data.shape != shape:
        faults.append(Fault("", f"samples have shape {data.shape}, the model takes {shape}"))
    if data.x.dtype != np.float32:
        faults.append(
            Fault("", f"samples are {data.x.dtype}, the model takes float32", "scale the data set first")
        )
    if faults:
        raise DataError(f"data set {data.name!r}", faults)


def _shuffled(samples: int, batch_size: int, steps: int, rng: np.random.Generator) -> Iterator[Batch]:
    """Yield the indices of `steps` mini-batches; every pass over the data has an order of its own."""
    starts = _starts(samples, batch_size)
    done = 0
    while True:
        order = rng.permutation(samples)
        for start, end in zip(starts, [*starts[1:], samples], strict=True):
            if done == steps:
                return
            done += 1
            yield order[start:end]


def _starts(samples: int, batch_size: int) -> list[int]:
    """Return where the batches of a pass begin; no last one is a single sample where that can be.

    Batch normalisation knows no variance of one. For all models alike, so that they take the same steps.
    """
    starts = list(range(0, samples, batch_size))
    if batch_size > 2 and len(starts) > 1 and samples - starts[-1] == 1:
        starts[-1] -= 1
    return starts
