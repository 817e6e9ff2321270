"""Group normalisation and its gradient, in few passes over the picture.

Wu and He, "Group normalization", 2018. What is carried from the forward pass to the backward one is the
input less its mean: neither the variance nor a gradient is then the small difference of two large sums.
"""

from __future__ import annotations

import torch

from models.manifest import Runtime

Gradients = tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]


def group_norm(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    batch: int,
    channels: int,
    pixels: int,
    groups: int,
    epsilon: float,
    *,
    runtime: Runtime,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the normalised picture, and every group's mean and 1 / standard deviation: (batch, groups)."""
    mean = x.reshape(batch, groups, -1).mean(2)
    centred = _centred(x, mean)
    variance = (centred * centred).sum(2) * (1.0 / (pixels * (channels // groups)))
    rstd = (variance + epsilon).rsqrt()
    scale = _scale(rstd, weight, channels)
    shift = torch.zeros_like(scale) if bias is None else bias.expand_as(scale)
    result = _moved(centred.reshape(batch, channels, -1), scale, shift, runtime)
    return result.reshape(x.shape), mean, rstd


def group_norm_backward(
    gradient: torch.Tensor,
    x: torch.Tensor,
    mean: torch.Tensor,
    rstd: torch.Tensor,
    weight: torch.Tensor | None,
    batch: int,
    channels: int,
    pixels: int,
    groups: int,
    wanted: list[bool],
    *,
    runtime: Runtime,
) -> Gradients:
    """Return the gradients by input, weight and bias, those of them that are wanted.

    With d the input less its mean, g the output's gradient, w the weight and r = 1 / standard deviation:
    w r g - d r³ mean(w g d) - r mean(w g), the means over the group.
    """
    given = gradient.reshape(batch, channels, -1)
    centred = _centred(x, mean)
    # Two sums over every channel's pixels; what follows is of their size.
    by_centred = (given * centred.reshape(batch, channels, -1)).sum(2).reshape(batch, groups, -1)
    by_one = given.sum(2).reshape(batch, groups, -1)
    by_input = None
    if wanted[0]:
        share = 1.0 / (pixels * (channels // groups))
        pull = _weighed(by_centred, weight) * rstd * rstd * rstd * share
        shift = _weighed(by_one, weight) * rstd * share
        alike = (-shift).unsqueeze(2).expand(batch, groups, channels // groups).reshape(batch, channels)
        scaled = _moved(given, _scale(rstd, weight, channels), alike, runtime)
        by_input = (scaled.reshape(batch, groups, -1) - centred * pull.unsqueeze(2)).reshape(x.shape)
    by_weight = (by_centred * rstd.unsqueeze(2)).sum(0).reshape(channels) if wanted[1] else None
    return by_input, by_weight, by_one.sum(0).reshape(channels) if wanted[2] else None


def _centred(x: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    """Return x less its group's mean: (batch, groups, elements of a group)."""
    return x.reshape(*mean.shape, -1) - mean.unsqueeze(2)


def _moved(x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, runtime: Runtime) -> torch.Tensor:
    """Return x, (batch, channels, pixels), times and plus a number for each sample and channel.

    ONNX Runtime does both at once in only one operator, the batch normalisation of inference.
    """
    if runtime == "tflite":
        return x * scale.unsqueeze(2) + shift.unsqueeze(2)
    rows = scale.shape[0] * scale.shape[1]
    # They depend on the number of rows only, so that all layers of as many channels share them.
    zeros, ones = torch.zeros(rows, dtype=x.dtype), torch.ones(rows, dtype=x.dtype)
    row = x.reshape(1, rows, x.shape[2])
    moved = torch.ops.aten._native_batch_norm_legit_no_training.default(
        row, scale.flatten(), shift.flatten(), zeros, ones, 0.1, 0.0
    )
    result: torch.Tensor = moved[0]
    return result.reshape(x.shape)


def _scale(rstd: torch.Tensor, weight: torch.Tensor | None, channels: int) -> torch.Tensor:
    """Return what every channel is multiplied by: (batch, channels)."""
    batch, groups = rstd.shape
    spread = rstd.unsqueeze(2)
    if weight is None:
        spread = spread.expand(batch, groups, channels // groups)
    else:
        spread = spread * weight.reshape(1, groups, -1)
    return spread.reshape(batch, channels)


def _weighed(sums: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor:
    """Return the sum over the channels of each group, (batch, groups), each times its weight."""
    return (sums if weight is None else sums * weight.reshape(1, *sums.shape[1:])).sum(2)
