"""The gradients of pooling, by slices: every window's share goes back to where it came from."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import torch
from torch.nn import functional

from models.export.decompositions.geometry import Pair, dilate, pad_or_crop, pair, resized, window_slices

_LEAST = -3.0e38
"""Below every activation; infinity times zero would be NaN."""


def max_pool_backward(
    gradient: torch.Tensor,
    x: torch.Tensor,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    ceil_mode: bool,
    indices: torch.Tensor,
) -> torch.Tensor:
    """Return the gradient by the input of max pooling; the first of equal maxima gets it, as in PyTorch.

    `indices` go unused: what they point to is found again by comparison, which needs no scatter.

    Raises:
        NotImplementedError: A kind of pooling that is not written out here.
    """
    if ceil_mode or x.dim() != 4:
        raise NotImplementedError("max pooling with ceil_mode, or of single pictures")
    kernel, margin, spacing = pair(kernel_size), pair(padding, (0, 0)), pair(dilation)
    step = pair(stride, kernel)
    rows, columns = gradient.shape[2:]
    around = (margin[1], margin[1], margin[0], margin[0])
    padded = functional.pad(x, around, value=_LEAST) if any(around) else x
    places = window_slices(padded, kernel, step, spacing, (rows, columns))
    shares = _first_maxima(places, gradient)
    return _uncovered(_put_back(shares, kernel, step, spacing, padded.shape[2:]), x, margin)


def average_pool_backward(
    gradient: torch.Tensor,
    x: torch.Tensor,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
) -> torch.Tensor:
    """Return the gradient by the input of average pooling.

    Raises:
        NotImplementedError: A kind of pooling that is not written out here.
    """
    kernel, margin = pair(kernel_size), pair(padding, (0, 0))
    if ceil_mode or x.dim() != 4 or (margin != (0, 0) and not count_include_pad):
        raise NotImplementedError("average pooling with ceil_mode, of single pictures, or that skips padding")
    share = gradient / (divisor_override or kernel[0] * kernel[1])
    shares = {(row, column): share for row in range(kernel[0]) for column in range(kernel[1])}
    size = (x.shape[2] + 2 * margin[0], x.shape[3] + 2 * margin[1])
    return _uncovered(_put_back(shares, kernel, pair(stride, kernel), (1, 1), size), x, margin)


def _first_maxima(places: dict[Pair, torch.Tensor], gradient: torch.Tensor) -> dict[Pair, torch.Tensor]:
    """Return what every place of its window gets: the gradient where it is the first maximum, else zero."""
    greatest = reduce(torch.maximum, places.values())
    left, shares = gradient, {}
    for place, values in places.items():
        shares[place] = (values == greatest).to(gradient.dtype) * left
        left = left - shares[place]
    return shares


def _put_back(
    shares: dict[Pair, torch.Tensor], kernel: Pair, step: Pair, spacing: Pair, size: Sequence[int]
) -> torch.Tensor:
    """Return a picture of that size with the sum of what the windows put at each of its pixels."""
    height, width = size
    if kernel == step and spacing == (1, 1):
        return resized(_side_by_side(shares, kernel), height, width)
    placed = []
    for (row, column), share in shares.items():
        spread = dilate(share, step)
        top, left = row * spacing[0], column * spacing[1]
        bottom, right = height - top - spread.shape[2], width - left - spread.shape[3]
        placed.append(pad_or_crop(spread, left=left, right=right, top=top, bottom=bottom))
    return reduce(torch.add, placed)


def _side_by_side(shares: dict[Pair, torch.Tensor], kernel: Pair) -> torch.Tensor:
    """Return the windows, which do not overlap, laid out beside and below each other."""
    batch, channels, rows, columns = shares[0, 0].shape
    lines = []
    for row in range(kernel[0]):
        line = torch.stack([shares[row, column] for column in range(kernel[1])], 4)
        lines.append(line.reshape(batch, channels, rows, columns * kernel[1]))
    return torch.stack(lines, 3).reshape(batch, channels, rows * kernel[0], columns * kernel[1])


def _uncovered(padded: torch.Tensor, x: torch.Tensor, margin: Pair) -> torch.Tensor:
    """Return the picture without its padding."""
    return padded[:, :, margin[0] : margin[0] + x.shape[2], margin[1] : margin[1] + x.shape[3]]
