"""The 2NN of McMahan et al., 2017: two hidden layers of 200 units with ReLU.

"Communication-efficient learning of deep networks from decentralized data", section 3.
On 1×28×28 and 10 classes: 157,000 + 40,200 + 2,010 = 199,210 parameters.
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
        OrderedDict[str, nn.Module](
            flatten=nn.Flatten(),
            fc1=nn.Linear(math.prod(shape), 200),
            relu1=nn.ReLU(),
            fc2=nn.Linear(200, 200),
            relu2=nn.ReLU(),
            fc3=nn.Linear(200, classes),
        )
    )


MODEL = ModelSpec(
    "mlp", "two hidden layers of 200 (McMahan et al. 2017's 2NN), for samples of any shape", _build, _misfit
)
