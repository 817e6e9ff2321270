"""The local optimiser, in numpy on the parameters' own memory: the same for every runtime.

One implementation means that torch, ONNX and TFLite devices take the same step from the same gradient, and
that a new term in the local step needs no new export.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import numpy as np

from models.arrays import Arrays, copied
from models.backends.plan import TrainPlan

Array = np.ndarray[Any, np.dtype[Any]]


class Rule(Protocol):
    """How a direction becomes a step; what it carries from step to step is its own."""

    def move(self, name: str, parameter: Array, direction: Array) -> None:
        """Change `parameter` in place; `direction` may be changed, too."""


class SGD:
    """Heavy-ball momentum without dampening, as `torch.optim.SGD` defines it."""

    def __init__(self, plan: TrainPlan) -> None:
        self._learning_rate = np.float32(plan.learning_rate)
        self._momentum = np.float32(plan.momentum)
        self._velocity: Arrays = {}

    def move(self, name: str, parameter: Array, direction: Array) -> None:
        if self._momentum:
            velocity = self._velocity.setdefault(name, np.zeros_like(direction))
            velocity *= self._momentum
            velocity += direction
            parameter -= self._learning_rate * velocity
        else:
            direction *= self._learning_rate
            parameter -= direction


class Adam:
    """Kingma & Ba, "Adam: a method for stochastic optimization", 2015, algorithm 1.

    As `torch.optim.Adam` has it, with the paper's constants: β₁ 0.9, β₂ 0.999, ε 1e-8.
    """

    _BETA_1, _BETA_2, _EPSILON = 0.9, 0.999, 1e-8

    def __init__(self, plan: TrainPlan) -> None:
        self._learning_rate = plan.learning_rate
        self._steps: dict[str, int] = {}
        self._first: Arrays = {}
        self._second: Arrays = {}

    def move(self, name: str, parameter: Array, direction: Array) -> None:
        step = self._steps[name] = self._steps.get(name, 0) + 1
        first = self._first.setdefault(name, np.zeros_like(direction))
        second = self._second.setdefault(name, np.zeros_like(direction))
        first += np.float32(1 - self._BETA_1) * (direction - first)
        second *= np.float32(self._BETA_2)
        direction *= direction
        direction *= np.float32(1 - self._BETA_2)
        second += direction
        root = np.sqrt(second, out=direction)
        root /= np.float32(math.sqrt(1 - self._BETA_2**step))
        root += np.float32(self._EPSILON)
        change = np.divide(first, root, out=root)
        change *= np.float32(self._learning_rate / (1 - self._BETA_1**step))
        parameter -= change


class LocalOptimiser:
    """What a plan makes of gradients: FedProx's term, clipping, weight decay, then SGD's or Adam's step.

    The proximal term is that of Li et al., "Federated optimization in heterogeneous networks", 2020, eq. 2:
    the local objective is F(w) + µ/2 ||w - w_global||², w_global being the parameters that came. It is part
    of the objective, and so of what is clipped; weight decay is the optimiser's own, and added after that:
    the order of a torch loop with `clip_grad_norm_` between `backward` and `step`.
    """

    def __init__(self, parameters: Arrays, plan: TrainPlan) -> None:
        self._parameters = parameters  # views: a step changes the runtime's own memory
        self._plan = plan
        self._came = copied(parameters) if plan.proximal_mu else {}
        self._rule: Rule = Adam(plan) if plan.optimizer == "adam" else SGD(plan)

    def step(self, gradients: Mapping[str, Array]) -> None:
        """Move every parameter that has a gradient by one step; the gradients' memory is used up."""
        # No warnings: whoever trains looks for what is not finite, and names it.
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            self._step(gradients)

    def _step(self, gradients: Mapping[str, Array]) -> None:
        plan = self._plan
        if plan.proximal_mu:
            for name, gradient in gradients.items():
                pull = np.float32(plan.proximal_mu) * (self._parameters[name] - self._came[name])
                np.add(gradient, pull, out=gradient)
        if plan.clip_norm is not None:
            _clip(gradients.values(), plan.clip_norm)
        for name, gradient in gradients.items():
            parameter = self._parameters[name]
            if plan.weight_decay:
                np.add(gradient, np.float32(plan.weight_decay) * parameter, out=gradient)
            self._rule.move(name, parameter, gradient)


def _clip(gradients: Iterable[Array], most: float) -> None:
    """Scale the gradients so that their norm as one vector is at most `most`."""
    together = list(gradients)
    norm = math.sqrt(sum(float(np.sum(np.square(part, dtype=np.float64))) for part in together))
    # As torch's `clip_grad_norm_`, with its guard against a norm of zero.
    scale = most / (norm + 1e-6)
    if not scale >= 1:
        for part in together:
            np.multiply(part, np.float32(scale), out=part)
