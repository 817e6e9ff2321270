"""Moving pictures about by reshaping, padding and slicing alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional

Pair = tuple[int, int]


def pair(sizes: Sequence[int], default: Pair = (1, 1)) -> Pair:
    """Return height and width of an argument that may be one number for both, or empty."""
    if not sizes:
        return default
    return (sizes[0], sizes[0]) if len(sizes) == 1 else (sizes[0], sizes[1])


def dilate(x: torch.Tensor, stride: Pair) -> torch.Tensor:
    """Return x with stride - 1 zeros between neighbours of its last two axes.

    x: (batch, channels, height, width). It takes neither a transposed convolution nor a scatter.
    """
    if stride == (1, 1):
        return x
    batch, channels, height, width = x.shape
    cells = x.reshape(batch * channels, height, 1, width, 1)
    cells = functional.pad(cells, (0, stride[1] - 1, 0, 0, 0, stride[0] - 1))
    spread = cells.reshape(batch, channels, height * stride[0], width * stride[1])
    return spread[:, :, : (height - 1) * stride[0] + 1, : (width - 1) * stride[1] + 1]


def pad_or_crop(x: torch.Tensor, *, left: int, right: int, top: int, bottom: int) -> torch.Tensor:
    """Return x with so many zeros more on each side of its last two axes; cut where a number is below 0."""
    if max(left, right, top, bottom) > 0:
        x = functional.pad(x, (max(left, 0), max(right, 0), max(top, 0), max(bottom, 0)))
    if min(left, right, top, bottom) < 0:
        height, width = x.shape[2:]
        x = x[:, :, max(-top, 0) : height - max(-bottom, 0), max(-left, 0) : width - max(-right, 0)]
    return x


def resized(x: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Return x cut or filled up with zeros, below and at the right, to that size."""
    return pad_or_crop(x, left=0, top=0, right=width - x.shape[3], bottom=height - x.shape[2])


def window_slices(
    x: torch.Tensor, kernel: Pair, stride: Pair, dilation: Pair, out: Pair
) -> dict[Pair, torch.Tensor]:
    """Return, for every place in a pooling window, what lies there in each of the windows.

    x: (batch, channels, height, width), padded already. Each slice: (batch, channels, *out).
    """
    slices = {}
    for row in range(kernel[0]):
        for column in range(kernel[1]):
            top, left = row * dilation[0], column * dilation[1]
            bottom, right = top + (out[0] - 1) * stride[0] + 1, left + (out[1] - 1) * stride[1] + 1
            slices[row, column] = x[:, :, top : bottom : stride[0], left : right : stride[1]]
    return slices
