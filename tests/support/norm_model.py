"""A model of another package, with statistics of its batches: only who defines models has it installed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from models.registry import ModelSpec

if TYPE_CHECKING:
    import torch


def build(shape: tuple[int, ...], classes: int) -> torch.nn.Module:
    """Return a convolution, batch normalisation and a linear layer."""
    from torch import nn  # noqa: PLC0415 - a model is looked up without torch

    channels, height, width = shape
    return nn.Sequential(
        nn.Conv2d(channels, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(4 * height * width, classes),
    )


MODEL = ModelSpec("norm", "a convolution with batch normalisation", build)
