"""The gradient of a table of embeddings, as one product of matrices."""

from __future__ import annotations

import torch


def backward(
    gradient: torch.Tensor,
    indices: torch.Tensor,
    num_weights: int,
    padding_idx: int,
    scale_grad_by_freq: bool,
) -> torch.Tensor:
    """Return the gradient by the table: the one-hot rows of the indices, times the output's gradient.

    Raises:
        NotImplementedError: Gradients scaled by frequency.
    """
    if scale_grad_by_freq:
        raise NotImplementedError("an embedding with scale_grad_by_freq")
    rows = torch.arange(num_weights, dtype=indices.dtype)
    hits = indices.reshape(-1, 1) == rows.reshape(1, -1)
    if padding_idx >= 0:
        hits = hits & (rows != padding_idx).reshape(1, -1)
    return hits.to(gradient.dtype).t() @ gradient.reshape(-1, gradient.shape[-1])
