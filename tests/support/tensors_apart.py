"""How far two models are apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors.numpy import load_file


def greatest_difference(first: Path, second: Path) -> float:
    """Return the greatest difference of any tensor, as a share of the tensor's greatest magnitude."""
    one, other = load_file(first), load_file(second)
    assert one.keys() == other.keys()
    assert one, "a model without tensors"
    return max(
        float(np.abs(one[name].astype(np.float64) - other[name]).max() / np.abs(one[name]).max())
        for name in one
    )
