"""A convolution and its gradient, as convolutions.

Dumoulin and Visin 2016, "A guide to convolution arithmetic for deep learning".

By the weight: a convolution of the input with the output's gradient, batch and channels swapped, stride and
dilation swapped (`kernel_gradients` has it as ONNX Runtime is faster at it). By the input: a transposed
convolution of the output's gradient. Where a runtime has no transposed convolution with groups and dilation
(TFLite), it is written out: the gradient with zeros between its elements, convolved with the kernels turned
around.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from models.export.decompositions.geometry import Pair, dilate, pad_or_crop, pair
from models.export.decompositions.kernel_gradients import by_kernel
from models.manifest import Runtime

Gradients = tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]

_convolution = torch.ops.aten.convolution.default

_FEW_CHANNELS = 32
"""With more, turning the kernels around takes what is won."""


@dataclass(frozen=True)
class _Layer:
    """How a two-dimensional convolution slides."""

    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int
    runtime: Runtime

    def missing(self, x: torch.Tensor, kernel: Sequence[int], out: Sequence[int]) -> Pair:
        """Return how many rows and columns at the end of x no window reached: the output padding."""

        def of(axis: int) -> int:
            reached = (out[axis] - 1) * self.stride[axis] - 2 * self.padding[axis]
            return x.shape[2 + axis] - (reached + self.dilation[axis] * (kernel[axis] - 1) + 1)

        return of(0), of(1)


def forward(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    transposed: bool,
    output_padding: list[int],
    groups: int,
) -> Any:
    """Return a convolution to few channels as a transposed one with the kernels turned around.

    ONNX Runtime multiplies first, and moves then about as many numbers as come out, not as go in, which it
    does in three quarters of the time. All others stay as they are.
    """
    # A gradient by the kernels comes here too, with the samples, any number of them, as channels.
    sizes = [size for size in weight.shape if isinstance(size, int)]
    if transposed or groups != 1 or set(stride) != {1} or len(sizes) != 4 or x.dim() != 4:
        return NotImplemented
    reach = [spacing * (size - 1) for spacing, size in zip(pair(dilation), sizes[2:], strict=True)]
    around = [far - near for far, near in zip(reach, pair(padding, (0, 0)), strict=True)]
    if not any(reach) or min(around) < 0 or sizes[0] > min(sizes[1], _FEW_CHANNELS):
        return NotImplemented
    turned = _turned_around(weight, 1)
    return _convolution(x, turned, bias, stride, around, dilation, True, [0, 0], 1)


def backward(
    gradient: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias_sizes: list[int] | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    transposed: bool,
    output_padding: list[int],
    groups: int,
    wanted: list[bool],
    *,
    runtime: Runtime,
) -> Gradients:
    """Return the gradients by input, weight and bias, those of them that are wanted.

    Args:
        runtime: Whose convolutions do it.

    Raises:
        NotImplementedError: A convolution over more than two axes.
    """
    layer = _Layer(pair(stride), pair(padding, (0, 0)), pair(dilation), groups, runtime)
    return _backward(layer, gradient, x, weight, transposed, wanted)


def _backward(
    layer: _Layer,
    gradient: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    transposed: bool,
    wanted: list[bool],
) -> Gradients:
    if weight.dim() == 3:
        return _backward_1d(layer, gradient, x, weight, transposed, wanted)
    if weight.dim() != 4:
        raise NotImplementedError(f"convolutions over {weight.dim() - 2} axes: one or two are due")
    by_bias = gradient.sum((0, 2, 3)) if wanted[2] else None
    if transposed:  # y = conv_transpose(x): x and the gradient change places
        by_input = _forward(layer, gradient, weight) if wanted[0] else None
        return by_input, _by_weight(layer, x, gradient, weight) if wanted[1] else None, by_bias
    by_input = _by_input(layer, gradient, x, weight) if wanted[0] else None
    return by_input, _by_weight(layer, gradient, x, weight) if wanted[1] else None, by_bias


def _backward_1d(
    layer: _Layer,
    gradient: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    transposed: bool,
    wanted: list[bool],
) -> Gradients:
    """Do it in pictures of one row."""
    flat = replace(
        layer, stride=(1, layer.stride[1]), padding=(0, layer.padding[1]), dilation=(1, layer.dilation[1])
    )
    by_input, by_weight, by_bias = _backward(
        flat, gradient.unsqueeze(2), x.unsqueeze(2), weight.unsqueeze(2), transposed, wanted
    )
    squeezed = [None if part is None else part.squeeze(2) for part in (by_input, by_weight)]
    return squeezed[0], squeezed[1], by_bias


def _forward(layer: _Layer, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    result: torch.Tensor = _convolution(
        x, weight, None, layer.stride, layer.padding, layer.dilation, False, [0, 0], layer.groups
    )
    return result


def _by_input(layer: _Layer, gradient: torch.Tensor, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    missing = layer.missing(x, weight.shape[2:], gradient.shape[2:])
    if layer.runtime == "tflite":
        return _transposed_written_out(layer, gradient, weight, missing)
    result: torch.Tensor = _convolution(
        gradient, weight, None, layer.stride, layer.padding, layer.dilation, True, missing, layer.groups
    )
    return result


def _transposed_written_out(
    layer: _Layer, gradient: torch.Tensor, weight: torch.Tensor, missing: Pair
) -> torch.Tensor:
    rows = layer.dilation[0] * (weight.shape[2] - 1) - layer.padding[0]
    columns = layer.dilation[1] * (weight.shape[3] - 1) - layer.padding[1]
    spread = pad_or_crop(
        dilate(gradient, layer.stride),
        left=columns,
        right=columns + missing[1],
        top=rows,
        bottom=rows + missing[0],
    )
    plain = replace(layer, stride=(1, 1), padding=(0, 0))
    return _forward(plain, spread, _turned_around(weight, layer.groups))


def _turned_around(weight: torch.Tensor, groups: int) -> torch.Tensor:
    """Return the kernels upside down and mirrored, input and output channels of each group swapped.

    weight: (out, in / groups, height, width). Result: (in, out / groups, height, width).
    """
    outputs, inputs, height, width = weight.shape
    swapped = weight.reshape(groups, outputs // groups, inputs, height, width).transpose(1, 2)
    flat = swapped.reshape(groups * inputs, outputs // groups, height * width)
    return flat.flip((2,)).reshape(groups * inputs, outputs // groups, height, width)


def _by_weight(layer: _Layer, gradient: torch.Tensor, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    if layer.runtime == "onnx":
        return by_kernel(
            gradient,
            x,
            (weight.shape[2], weight.shape[3]),
            stride=layer.stride,
            padding=layer.padding,
            dilation=layer.dilation,
            groups=layer.groups,
            missing=layer.missing(x, weight.shape[2:], gradient.shape[2:]),
        )
    correlated: torch.Tensor = _convolution(
        _channels_first(x, layer.groups),
        gradient.transpose(0, 1),
        None,
        layer.dilation,
        layer.padding,
        layer.stride,
        False,
        [0, 0],
        layer.groups,
    )
    # Rows and columns that no window reached make the result larger than the kernel.
    kept = correlated[:, :, : weight.shape[2], : weight.shape[3]]
    return kept.transpose(0, 1).contiguous()


def _channels_first(x: torch.Tensor, groups: int) -> torch.Tensor:
    """Return x with channels for samples: (channels / groups, groups * batch, height, width)."""
    if groups == 1:
        return x.transpose(0, 1)
    batch, channels, height, width = x.shape
    grouped = x.reshape(batch, groups, channels // groups, height, width).permute(2, 1, 0, 3, 4)
    return grouped.reshape(channels // groups, groups * batch, height, width)
