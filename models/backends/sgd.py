"""The local optimiser, in numpy on the parameters' own memory: the same for every runtime.

One implementation means that torch, ONNX and TFLite devices take the same step from the same gradient, and
that a new term in the local step needs no new export.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from models.arrays import Arrays, copied
from models.backends.plan import TrainPlan


class LocalSGD:
    """SGD with momentum and weight decay as `torch.optim.SGD` defines them, and FedProx's proximal term.

    The proximal term is that of Li et al., "Federated optimization in heterogeneous networks", 2020, eq. 2:
    the local objective is F(w) + µ/2 ||w - w_global||², w_global being the parameters that came.
    """

    def __init__(self, parameters: Arrays, plan: TrainPlan) -> None:
        self._parameters = parameters  # views: a step changes the runtime's own memory
        self._plan = plan
        self._came = copied(parameters) if plan.proximal_mu else {}
        self._velocity: Arrays = {}

    def step(self, gradients: Mapping[str, np.ndarray[Any, Any]]) -> None:
        """Move every parameter that has a gradient by one step."""
        # No warnings: whoever trains looks for what is not finite, and names it.
        with np.errstate(over="ignore", invalid="ignore"):
            self._move(gradients)

    def _move(self, gradients: Mapping[str, np.ndarray[Any, Any]]) -> None:
        plan = self._plan
        for name, gradient in gradients.items():
            parameter = self._parameters[name]
            direction = gradient.copy()
            if plan.weight_decay:
                direction += np.float32(plan.weight_decay) * parameter
            if plan.proximal_mu:
                direction += np.float32(plan.proximal_mu) * (parameter - self._came[name])
            if plan.momentum:
                velocity = self._velocity.setdefault(name, np.zeros_like(direction))
                velocity *= np.float32(plan.momentum)
                velocity += direction
                direction = velocity
            parameter -= np.float32(plan.learning_rate) * direction
