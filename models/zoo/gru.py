"""A gated recurrent unit: Cho et al., "Learning phrase representations using RNN encoder–decoder", 2014.

One layer of 32 units reads the sequence step by step; a linear layer tells the class from its last state.
Exported files have every step written out, so they grow with the sequence.
On 28 steps of 28 numbers (MNIST's rows) and 10 classes: 5,952 + 330 = 6,282 parameters.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from models.registry import ModelSpec, Shape, require_fit

if TYPE_CHECKING:
    import torch

_UNITS = 32


def _misfit(shape: Shape) -> str:
    if len(shape) == 2 or (len(shape) == 3 and shape[0] == 1):
        return ""
    return "(steps, numbers), or pictures of one channel, whose rows are the steps"


def _build(shape: Shape, classes: int) -> torch.nn.Module:
    require_fit(MODEL, shape)
    from torch import nn  # noqa: PLC0415  # only who builds a model needs torch

    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gru = nn.GRU(shape[-1], _UNITS, batch_first=True)
            self.fc = nn.Linear(_UNITS, classes)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            # x: (batch, steps, numbers) or (batch, 1, steps, numbers) float32
            states, _ = self.gru(x.reshape(x.shape[0], shape[-2], shape[-1]))
            result: torch.Tensor = self.fc(states[:, -1])
            return result

    return Recurrent()


MODEL = ModelSpec("gru", "a recurrent layer of 32 units (Cho et al. 2014), for sequences", _build, _misfit)
