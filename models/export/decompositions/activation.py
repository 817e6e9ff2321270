"""The gradients of activations, in few passes."""

from __future__ import annotations

from typing import Any

import torch


def elu_backward(
    gradient: torch.Tensor,
    alpha: float,
    scale: float,
    input_scale: float,
    is_result: bool,
    self_or_result: torch.Tensor,
) -> Any:
    """Return the gradient by the input of ELU: times 1 above zero, times the result + 1 below.

    Clevert et al., "Fast and accurate deep network learning by exponential linear units", 2016, eq. 15.
    The result is there from the forward pass. SELU, and other steepness than 1, are left to PyTorch.
    """
    if (alpha, scale, input_scale) != (1, 1, 1):
        return NotImplemented
    result = self_or_result if is_result else torch.ops.aten.elu.default(self_or_result)
    return gradient * (result + 1).clamp(0, 1)


def relu_backward(gradient: torch.Tensor, result: torch.Tensor, threshold: float) -> torch.Tensor:
    """Return the gradient where the result is above the threshold, else zero: a choice takes longer."""
    return gradient * (result > threshold).to(gradient.dtype)
