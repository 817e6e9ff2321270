"""The gradient of a convolution by its kernels, in the convolutions that ONNX Runtime is fast at.

With batch and channels swapped it is a convolution of the input with the output's gradient as the kernels
(`convolution`), whose result is as small as a kernel. ONNX Runtime makes a matrix of the input for that, in
runs as long as the result's rows, and multiplies it by as many columns as the result has pixels: nine, for
kernels of 3×3. Here the result is made wider, so that the same sums take a third of the time.
"""

from __future__ import annotations

import torch

from models.export.decompositions.geometry import Pair, pad_or_crop

_convolution = torch.ops.aten.convolution.default


def by_kernel(
    gradient: torch.Tensor,
    x: torch.Tensor,
    kernel: Pair,
    *,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
    missing: Pair,
) -> torch.Tensor:
    """Return the gradient by the kernels: (out, in / groups, height, width).

    Args:
        missing: How many rows and columns at the end of x, padding included, no window reached.
    """
    if kernel == (1, 1) and padding == (0, 0):
        return _by_single_pixels(gradient, x, stride, groups)
    if x.shape[1] == groups:
        return _by_rows(gradient, x, kernel, stride, padding, dilation, missing[0])
    return _by_pixels_of_channels(gradient, x, kernel, stride, padding, dilation, groups, missing)


def _by_single_pixels(gradient: torch.Tensor, x: torch.Tensor, stride: Pair, groups: int) -> torch.Tensor:
    """Multiply matrices, one for each sample and group."""
    batch, channels, rows, columns = gradient.shape
    met = x[:, :, : (rows - 1) * stride[0] + 1 : stride[0], : (columns - 1) * stride[1] + 1 : stride[1]]
    outputs = gradient.reshape(batch * groups, channels // groups, rows * columns)
    inputs = met.reshape(batch * groups, x.shape[1] // groups, rows * columns)
    products = outputs @ inputs.transpose(1, 2)
    return products.reshape(batch, channels, x.shape[1] // groups, 1, 1).sum(0)


def _by_pixels_of_channels(
    gradient: torch.Tensor,
    x: torch.Tensor,
    kernel: Pair,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
    missing: Pair,
) -> torch.Tensor:
    """Lay the channels of each pixel side by side: the result's rows are longer by them."""
    batch, channels, height, width = x.shape
    inputs = channels // groups
    # Moved about in few axes: ONNX Runtime is slow at more.
    grouped = x.reshape(batch, groups, channels // groups * height * width).transpose(0, 1)
    laid = grouped.reshape(groups * batch, inputs, height * width).transpose(1, 2)
    met, due = _reached(
        laid.reshape(1, groups * batch, height, width * inputs),
        (padding[0], padding[1] * inputs),
        (missing[0], missing[1] * inputs),
    )
    found: torch.Tensor = _convolution(
        met,
        gradient.transpose(0, 1),
        None,
        [dilation[0], 1],
        due,
        [stride[0], stride[1] * inputs],
        False,
        [0, 0],
        groups,
    )
    reach = (kernel[1] - 1) * dilation[1] + 1
    kept = found[0].reshape(-1, kernel[0], reach, inputs)
    return kept[:, :, :: dilation[1]].permute(0, 3, 1, 2).contiguous()


def _by_rows(
    gradient: torch.Tensor,
    x: torch.Tensor,
    kernel: Pair,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    missing: int,
) -> torch.Tensor:
    """Where every channel has its own kernels: sum over the rows for all pairs of columns, and keep some.

    A column of the output has met those of the input that a kernel's columns lie at.
    """
    batch, channels, height, width = x.shape
    outputs, rows, columns = gradient.shape[1:]
    # In two steps: ONNX Runtime is slow at moving both axes at once.
    turned = gradient.transpose(0, 1).reshape(outputs, batch * rows, columns).transpose(1, 2)
    whole = x.transpose(0, 1).reshape(1, channels * batch, height, width)
    met, due = _reached(whole, (padding[0], 0), (missing, 0))
    found: torch.Tensor = _convolution(
        met,
        turned.reshape(outputs * columns, batch, rows, 1),
        None,
        [dilation[0], 1],
        due,
        [stride[0], 1],
        False,
        [0, 0],
        channels,
    )
    pairs = found[0].reshape(outputs, columns, kernel[0], width).transpose(1, 2)
    reach = (kernel[1] - 1) * dilation[1] + 1
    length = max(padding[1] + width, (columns - 1) * stride[1] + reach)
    pairs = torch.nn.functional.pad(pairs, (padding[1], length - padding[1] - width))
    # Rows that are longer by the stride begin, one after another, where the kernel's first column lies.
    flat = torch.nn.functional.pad(
        pairs.reshape(outputs, kernel[0], columns * length), (0, columns * stride[1])
    )
    kept = flat.reshape(outputs, kernel[0], columns, length + stride[1])[..., : reach : dilation[1]]
    return kept.sum(2).unsqueeze(1)


def _reached(x: torch.Tensor, padding: Pair, missing: Pair) -> tuple[torch.Tensor, Pair]:
    """Return x without what no window reached, and the padding that is then due.

    Left in, it makes the result larger than the kernel: 4×4 for 3×3, where the stride is 2.
    """
    if missing == (0, 0):
        return x, padding
    right, bottom = padding[1] - missing[1], padding[0] - missing[0]
    return pad_or_crop(x, left=padding[1], right=right, top=padding[0], bottom=bottom), (0, 0)
