"""ResNet-8: He et al., "Deep residual learning for image recognition", 2016, section 4.2, with n = 1.

The network of MLPerf Tiny (Banbury et al. 2021): 16, 32 and 64 channels, a block of two convolutions each, a
1×1 convolution where the size changes. Group normalisation stands in the place of batch normalisation, whose
statistics don't average over devices with unlike data (Hsieh et al., "The non-IID data quagmire", 2020), and
ELU in the place of ReLU (Clevert et al., "Exponential linear units", 2016), whose slope has a step at zero:
among two million activations a batch there are, often enough, some so near to it that runtimes which round
otherwise find them on either side. After a hundred steps their parameters were 1e-3 apart; with ELU 1e-7.
On 3×32×32 and 10 classes: 464 + 4,672 + 14,464 + 57,600 + 650 = 77,850 parameters.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from models.registry import ModelSpec, Shape, pictures_from, require_fit

if TYPE_CHECKING:
    import torch

_SMALLEST = 8  # 8 → 4 → 2 before the mean
_CHANNELS = (16, 32, 64)
_GROUPS = 8


def _build(shape: Shape, classes: int) -> torch.nn.Module:
    require_fit(MODEL, shape)
    from torch import nn  # noqa: PLC0415  # only who builds a model needs torch

    def convolution(inputs: int, outputs: int, stride: int) -> nn.Conv2d:
        return nn.Conv2d(inputs, outputs, kernel_size=3, stride=stride, padding=1, bias=False)

    class Block(nn.Module):
        def __init__(self, inputs: int, outputs: int, stride: int) -> None:
            super().__init__()
            self.conv1 = convolution(inputs, outputs, stride)
            self.norm1 = nn.GroupNorm(_GROUPS, outputs)
            self.conv2 = convolution(outputs, outputs, 1)
            self.norm2 = nn.GroupNorm(_GROUPS, outputs)
            self.elu = nn.ELU()
            self.shortcut = (
                nn.Identity()
                if inputs == outputs
                else nn.Conv2d(inputs, outputs, kernel_size=1, stride=stride, bias=False)
            )

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            inner = self.norm2(self.conv2(self.elu(self.norm1(self.conv1(x)))))
            result: torch.Tensor = self.elu(inner + self.shortcut(x))
            return result

    class ResNet8(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            first, second, third = _CHANNELS
            self.conv = convolution(shape[0], first, 1)
            self.norm = nn.GroupNorm(_GROUPS, first)
            self.elu = nn.ELU()
            self.blocks = nn.Sequential(
                Block(first, first, 1), Block(first, second, 2), Block(second, third, 2)
            )
            self.fc = nn.Linear(third, classes)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            maps = self.blocks(self.elu(self.norm(self.conv(x))))
            result: torch.Tensor = self.fc(maps.mean((2, 3)))
            return result

    return ResNet8()


MODEL = ModelSpec(
    "resnet8", "ResNet-8 with group normalisation, for pictures of 32×32", _build, pictures_from(_SMALLEST)
)
