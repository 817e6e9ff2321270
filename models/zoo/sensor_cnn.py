"""A one-dimensional CNN for windows of sensor readings, as for telling human activities apart.

After Ronao and Cho, "Human activity recognition with smartphone sensors using deep learning neural networks",
2016: convolutions along time over all channels, ReLU and max pooling by two after each, a dense layer.
On 6×128 (accelerometer and gyroscope) and 6 classes: 992 + 5,152 + 65,600 + 390 = 72,134 parameters.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from models.registry import ModelSpec, Shape, require_fit

if TYPE_CHECKING:
    import torch

_SHORTEST = 4  # 4 → 2 → 1


def _misfit(shape: Shape) -> str:
    if len(shape) == 2 and shape[0] >= 1 and shape[1] >= _SHORTEST:
        return ""
    return f"(channels, readings) with at least {_SHORTEST} readings"


def _build(shape: Shape, classes: int) -> torch.nn.Module:
    require_fit(MODEL, shape)
    from torch import nn  # noqa: PLC0415  # only who builds a model needs torch

    channels, readings = shape
    return nn.Sequential(
        OrderedDict[str, nn.Module](
            conv1=nn.Conv1d(channels, 32, kernel_size=5, padding=2),
            relu1=nn.ReLU(),
            pool1=nn.MaxPool1d(2),
            conv2=nn.Conv1d(32, 32, kernel_size=5, padding=2),
            relu2=nn.ReLU(),
            pool2=nn.MaxPool1d(2),
            flatten=nn.Flatten(),
            fc1=nn.Linear(32 * (readings // 2 // 2), 64),
            relu3=nn.ReLU(),
            fc2=nn.Linear(64, classes),
        )
    )


MODEL = ModelSpec(
    "sensor-cnn",
    "convolutions along time, for windows of sensor readings (channels, readings)",
    _build,
    _misfit,
)
