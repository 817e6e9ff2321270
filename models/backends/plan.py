"""What a backend is asked to do, and what it answers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from models.arrays import Arrays
from trellis.errors import ConfigError, Fault

Optimizer = Literal["sgd", "adam"]
OPTIMIZERS: tuple[str, ...] = get_args(Optimizer)


@dataclass(frozen=True)
class TrainPlan:
    """One bout of local training with mini-batches.

    Attributes:
        epochs: Passes over the data; exactly one of `epochs` and `steps` is given.
        steps: Mini-batches, over as many passes as they need.
        batch_size: Samples a mini-batch; the last of a pass may be smaller.
        learning_rate: Of every step.
        momentum: Of SGD: heavy-ball, without dampening.
        weight_decay: L2, added to the gradient.
        proximal_mu: FedProx's µ: µ/2 ||w - w_global||² joins the loss, so µ (w - w_global) the gradient.
        optimizer: `sgd` or `adam`.
        clip_norm: The most that the norm of all gradients together may be; None leaves them as they are.
        report_initial_loss: Also measure the mean loss of the data before training (q-FedAvg needs it).
    """

    epochs: int | None
    steps: int | None
    batch_size: int
    learning_rate: float
    momentum: float = 0.0
    weight_decay: float = 0.0
    proximal_mu: float = 0.0
    optimizer: Optimizer = "sgd"
    clip_norm: float | None = None
    report_initial_loss: bool = False

    def __post_init__(self) -> None:
        faults = []
        if (self.epochs is None) == (self.steps is None):
            faults.append(
                Fault("epochs", f"epochs {self.epochs} and steps {self.steps} came, exactly one is due")
            )
        for field, count in (("epochs", self.epochs), ("steps", self.steps), ("batch_size", self.batch_size)):
            if count is not None and count < 1:
                faults.append(Fault(field, f"{count} came, at least 1 is due"))
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            faults.append(Fault("learning_rate", f"{self.learning_rate} came, a number above 0 is due"))
        if not 0 <= self.momentum < 1:
            faults.append(Fault("momentum", f"{self.momentum} came, a number from 0 to below 1 is due"))
        for field, weight in (("weight_decay", self.weight_decay), ("proximal_mu", self.proximal_mu)):
            if not (math.isfinite(weight) and weight >= 0):
                faults.append(Fault(field, f"{weight} came, a number of at least 0 is due"))
        faults += self._optimizer_faults()
        if faults:
            raise ConfigError("training plan", faults)

    def _optimizer_faults(self) -> list[Fault]:
        faults = []
        if self.optimizer not in OPTIMIZERS:
            due = " or ".join(OPTIMIZERS)
            faults.append(Fault("optimizer", f"{str(self.optimizer)[:80]!r} came, {due} is due"))
        if self.optimizer == "adam" and self.momentum:
            problem = f"{self.momentum} came with optimizer adam, which has moments of its own"
            faults.append(Fault("momentum", problem, "leave momentum out, or take sgd"))
        if self.clip_norm is not None and not (math.isfinite(self.clip_norm) and self.clip_norm > 0):
            faults.append(Fault("clip_norm", f"{self.clip_norm} came, a number above 0 is due"))
        return faults


@dataclass(frozen=True)
class StepReport:
    """Where training stands after a step.

    Attributes:
        epoch: The pass this step belongs to, from 1.
        epochs: Passes in all, the last perhaps cut short.
        step: Steps done, over all passes.
        steps: Steps in all.
        loss: Mean over this step's mini-batch.
        samples: Samples seen so far, repetitions counted.
    """

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float
    samples: int


@dataclass(frozen=True)
class TrainResult:
    """What training made.

    Attributes:
        arrays: The trained parameters and buffers.
        samples: The size of the data set: the weight of this update.
        loss: Mean over the last pass's mini-batches, each measured just before its step.
        initial_loss: Mean over the data before training, if the plan asked for it.
        steps: Steps done.
        accuracy: Over the same mini-batches as `loss`.
    """

    arrays: Arrays
    samples: int
    loss: float
    initial_loss: float | None
    steps: int
    accuracy: float


@dataclass(frozen=True)
class EvalResult:
    """What evaluation found: mean loss, share of right answers, number of samples."""

    loss: float
    accuracy: float
    samples: int
