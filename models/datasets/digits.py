"""scikit-learn's bundled digits: 1,797 handwritten digits of 8×8 (Alpaydin and Kaynak 1998; UCI, CC BY 4.0).

The test split is one fifth, stratified, seed 42.
"""

from __future__ import annotations

import numpy as np

from models.datasets.stored import Pair, Stored
from trellis.errors import MissingExtra


def read() -> Stored:
    """Return the digits, x: (samples, 1, 8, 8) float32 in [0, 1], scaled from 0..16.

    Raises:
        MissingExtra: scikit-learn is not installed.
    """
    try:
        # Imported here: no device but one that uses the digits needs scikit-learn.
        from sklearn.datasets import load_digits  # noqa: PLC0415
        from sklearn.model_selection import train_test_split  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise MissingExtra("scikit-learn", "digits") from error
    bunch = load_digits()
    x = (bunch.images / 16.0).astype(np.float32)[:, np.newaxis]
    x_train, x_test, y_train, y_test = train_test_split(
        x, bunch.target, test_size=0.2, stratify=bunch.target, random_state=42
    )
    return Stored(train=Pair(x_train, y_train), test=Pair(x_test, y_test))
