"""The convolutional network of the classic MNIST demonstrations: conv 10 – conv 20 – dropout – fc 50 – fc.

5×5 kernels without padding, 2×2 max pooling after each, whole maps dropped with probability one half.
On 1×28×28 and 10 classes: 260 + 5,020 + 16,050 + 510 = 21,840 parameters.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from models.registry import ModelSpec, Shape, pictures_from, require_fit

if TYPE_CHECKING:
    import torch

_SMALLEST = 16  # 16 → 12 → 6 → 2 → 1


def _build(shape: Shape, classes: int) -> torch.nn.Module:
    require_fit(MODEL, shape)
    from torch import nn  # noqa: PLC0415  # only who builds a model needs torch

    channels, height, width = shape
    flat = 20 * (((height - 4) // 2 - 4) // 2) * (((width - 4) // 2 - 4) // 2)
    return nn.Sequential(
        OrderedDict[str, nn.Module](
            conv1=nn.Conv2d(channels, 10, kernel_size=5),
            pool1=nn.MaxPool2d(2),
            relu1=nn.ReLU(),
            conv2=nn.Conv2d(10, 20, kernel_size=5),
            dropout=nn.Dropout2d(0.5),
            pool2=nn.MaxPool2d(2),
            relu2=nn.ReLU(),
            flatten=nn.Flatten(),
            fc1=nn.Linear(flat, 50),
            relu3=nn.ReLU(),
            fc2=nn.Linear(50, classes),
        )
    )


MODEL = ModelSpec(
    "convnet",
    "two convolutions, dropout, two layers: the classic MNIST demo",
    _build,
    pictures_from(_SMALLEST),
)
