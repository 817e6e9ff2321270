"""`digits`: 1,797 handwritten digits of 8×8 (Alpaydin and Kaynak 1998; UCI repository, CC BY 4.0).

They lie beside this module as numbers from 0 to 16, in the order of scikit-learn's `load_digits` cut by
`train_test_split(test_size=0.2, stratify=target, random_state=42)`, so that no device needs scikit-learn.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from models.datasets import npz
from models.datasets.stored import Pair, Stored

FILE = Path(__file__).with_name("digits.npz")


def read() -> Stored:
    """Return the digits, x: (samples, 1, 8, 8) float32 in [0, 1]."""
    stored = npz.read(FILE)
    return Stored(train=_scaled(stored.train), test=_scaled(stored.test))


def _scaled(pair: Pair | None) -> Pair | None:
    return pair and Pair((pair.x / 16.0).astype(np.float32)[:, np.newaxis], pair.y)
