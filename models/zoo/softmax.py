"""Multinomial logistic regression: one linear layer, the softmax being part of the loss.

On 1×28×28 and 10 classes: 7,840 + 10 = 7,850 parameters.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import TYPE_CHECKING

from models.registry import ModelSpec, Shape, require_fit

if TYPE_CHECKING:
    import torch


def _misfit(shape: Shape) -> str:
    return "" if math.prod(shape) >= 1 else "at least one number a sample"


def _build(shape: Shape, classes: int) -> torch.nn.Module:
    require_fit(MODEL, shape)
    from torch import nn  # noqa: PLC0415  # only who builds a model needs torch

    return nn.Sequential(
        OrderedDict[str, nn.Module](flatten=nn.Flatten(), fc=nn.Linear(math.prod(shape), classes))
    )


MODEL = ModelSpec("softmax", "multinomial logistic regression, for samples of any shape", _build, _misfit)
