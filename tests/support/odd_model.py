"""A model of another package, whose training on the device named `odd` goes wrong each time in another way.

At first it is the model that fails, and the device says so. Later the device lies: it sends what its own
checks should have kept back, so that the server's are all that is left.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from models.arrays import Arrays
from models.registry import ModelSpec

if TYPE_CHECKING:
    import torch

    from models.backends.plan import TrainResult
    from models.backends.torch import TorchBackend

IS_ODD = "odd" in sys.argv
trainings = 0


def build(shape: tuple[int, ...], classes: int) -> torch.nn.Module:
    """Return softmax regression that breaks in the first training of the odd device."""
    import torch  # noqa: PLC0415 - a model is looked up without torch

    class Softmax(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(int(np.prod(shape)), classes)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.training and trainings == 1:
                fall_apart()
            return self.linear(x.flatten(1))

    if IS_ODD:
        misbehave()
    return Softmax()


MODEL = ModelSpec("odd", "softmax regression with bad days", build)


def fall_apart() -> None:
    raise RuntimeError("a gear is missing")


def spoiled(arrays: Arrays, training: int) -> Arrays:
    bias = arrays["linear.bias"]
    bad = {
        2: np.full_like(bias, np.nan),
        3: np.full_like(bias, np.nan),
        4: np.full_like(bias, np.inf),
        5: np.append(bias, bias),
        6: bias.astype(np.float64),
    }
    return {**arrays, "linear.bias": bad.get(training, bias)}


def misbehave() -> None:
    """Spoil what this process trains from now on."""
    import device_agent.trainer  # noqa: PLC0415 - the odd device's own process has it
    from models.backends.torch import TorchBackend  # noqa: PLC0415 - as above

    honest = TorchBackend.train

    def train(self: TorchBackend, *arguments: Any, **options: Any) -> TrainResult:
        global trainings  # noqa: PLW0603 - a process has one device
        trainings += 1
        if trainings == 3:
            device_agent.trainer.check_like = lambda *_: None
        result = honest(self, *arguments, **options)
        return replace(result, arrays=spoiled(result.arrays, trainings))

    TorchBackend.train = train  # type: ignore[method-assign]
