"""LeNet-5: LeCun et al., "Gradient-based learning applied to document recognition", 1998, fig. 2.

As it is trained today: ReLU and max pooling for the scaled tanh and the trained subsampling, every map of C3
joined to every map of S2, and a linear last layer. Two pixels of padding make the paper's 32×32 of 28×28.
On 1×28×28 and 10 classes: 156 + 2,416 + 48,120 + 10,164 + 850 = 61,706 parameters.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from models.registry import ModelSpec, Shape, pictures_from, require_fit

if TYPE_CHECKING:
    import torch

_SMALLEST = 12  # 12 → 6 after pooling → 2 after the 5×5 convolution → 1


def _build(shape: Shape, classes: int) -> torch.nn.Module:
    require_fit(MODEL, shape)
    from torch import nn  # noqa: PLC0415  # only who builds a model needs torch

    channels, height, width = shape
    flat = 16 * ((height // 2 - 4) // 2) * ((width // 2 - 4) // 2)
    return nn.Sequential(
        OrderedDict[str, nn.Module](
            conv1=nn.Conv2d(channels, 6, kernel_size=5, padding=2),
            relu1=nn.ReLU(),
            pool1=nn.MaxPool2d(2),
            conv2=nn.Conv2d(6, 16, kernel_size=5),
            relu2=nn.ReLU(),
            pool2=nn.MaxPool2d(2),
            flatten=nn.Flatten(),
            fc1=nn.Linear(flat, 120),
            relu3=nn.ReLU(),
            fc2=nn.Linear(120, 84),
            relu4=nn.ReLU(),
            fc3=nn.Linear(84, classes),
        )
    )


MODEL = ModelSpec(
    "lenet5", "LeNet-5 (LeCun et al. 1998), for pictures of 28×28 and more", _build, pictures_from(_SMALLEST)
)
