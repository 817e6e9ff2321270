"""A small MobileNet, after table 1 of Howard et al., "MobileNets", 2017.

A 3×3 convolution with 16 channels, then depthwise separable ones, 3×3 by channel and 1×1 across, with 32, 64,
64 and 128 channels, the second and the fourth with stride 2. Group normalisation stands in the place of batch
normalisation and ELU in the place of ReLU, as in `resnet8`, for its reasons. The mean of all pixels, and a
linear layer.
On 3×32×32 and 10 classes: 464 + 752 + 2,528 + 4,928 + 9,152 + 1,290 = 19,114 parameters.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from models.registry import ModelSpec, Shape, pictures_from, require_fit

if TYPE_CHECKING:
    import torch

_SMALLEST = 8  # 8 → 4 → 2 before the mean
_FIRST = 16
_SEPARABLE = ((32, 1), (64, 2), (64, 1), (128, 2))  # channels, stride
_GROUPS = 8


def _build(shape: Shape, classes: int) -> torch.nn.Module:
    require_fit(MODEL, shape)
    from torch import nn  # noqa: PLC0415  # only who builds a model needs torch

    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["conv"] = nn.Conv2d(shape[0], _FIRST, kernel_size=3, padding=1, bias=False)
    layers["norm"] = nn.GroupNorm(_GROUPS, _FIRST)
    layers["elu"] = nn.ELU()
    inputs = _FIRST
    for number, (outputs, stride) in enumerate(_SEPARABLE, start=1):
        layers[f"depth{number}"] = nn.Conv2d(
            inputs, inputs, kernel_size=3, stride=stride, padding=1, groups=inputs, bias=False
        )
        layers[f"depth_norm{number}"] = nn.GroupNorm(_GROUPS, inputs)
        layers[f"depth_elu{number}"] = nn.ELU()
        layers[f"point{number}"] = nn.Conv2d(inputs, outputs, kernel_size=1, bias=False)
        layers[f"point_norm{number}"] = nn.GroupNorm(_GROUPS, outputs)
        layers[f"point_elu{number}"] = nn.ELU()
        inputs = outputs
    layers["pool"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    layers["fc"] = nn.Linear(inputs, classes)
    return nn.Sequential(layers)


MODEL = ModelSpec(
    "mobile-cnn",
    "depthwise separable convolutions (MobileNet), for pictures of 32×32",
    _build,
    pictures_from(_SMALLEST),
)
