"""Where a data set comes from: `digits`, or a path to an NPZ file, an IDX folder or an IDX file.

What every source gives is a `Stored`: what it holds of training and test samples. A source without a test
split (`x` and `y` alone) has one fifth of every class held out, always the same.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

import numpy as np

from models.datasets import digits, idx, npz
from models.datasets.dataset import Dataset, Indices, Labels, Samples
from models.datasets.stored import Pair, Stored
from trellis.errors import DataError
from trellis.seeds import generator

Split = Literal["train", "test", "all"]

_NAMED = re.compile(r"([A-Za-z0-9][A-Za-z0-9_.-]*)=(.+)", re.ASCII)
_HELD_OUT = 0.2
_HELD_OUT_SEED = 42


def load(source: str, *, split: Split) -> Dataset:
    """Return the data that `source` names: `digits`, `PATH` or `NAME=PATH`.

    An NPZ file holds `x_train, y_train, x_test, y_test`, or `x, y` and perhaps `is_test`; an IDX folder holds
    the four files of MNIST; an IDX file of images has its labels beside it. Without NAME the data set is
    named after the file or folder. Pictures, (samples, height, width) uint8, get an axis for one channel.

    Raises:
        DataError: It cannot be read, or is not what it should be.
        MissingExtra: `digits` needs scikit-learn.
    """
    if source == "digits":
        name, stored = "digits", digits.read()
    else:
        given, path = _parsed(source)
        name, stored = given or _stem(path), _read(path)
    pair = _split(stored, split, source)
    return Dataset(name, _samples(pair.x, source), _labels(pair.y, source), _classes(stored, source))


def _parsed(source: str) -> tuple[str | None, Path]:
    named = _NAMED.fullmatch(source)
    return (named[1], Path(named[2])) if named else (None, Path(source))


def _stem(path: Path) -> str:
    path = path.resolve() if path.name in ("", "..") else path
    if path.is_dir():
        return path.name
    return path.with_suffix("").stem if path.suffix == ".gz" else path.stem


def _read(path: Path) -> Stored:
    if path.is_dir():
        return idx.read_folder(path)
    if not path.is_file():
        raise DataError(f"data set {str(path)!r}", "no such file or folder; give digits, PATH or NAME=PATH")
    with path.open("rb") as file:
        start = file.read(4)
    if start[:2] == b"PK":
        return npz.read(path)
    if start[:2] in (b"\x1f\x8b", b"\x00\x00"):  # gzip, or IDX's two zeros
        return idx.read_images(path)
    problem = f"starts with the bytes {start!r}, which is neither NPZ nor IDX; write one with numpy.savez"
    raise DataError(f"data set {str(path)!r}", problem)


def _split(stored: Stored, split: Split, source: str) -> Pair:
    if stored.whole is not None:
        if split == "all":
            return stored.whole
        held_out = _held_out(_labels(stored.whole.y, source))
        return stored.whole.take(held_out if split == "test" else ~held_out)
    pairs = {"train": [stored.train], "test": [stored.test], "all": [stored.train, stored.test]}[split]
    present = [pair for pair in pairs if pair is not None]
    if not present:
        raise DataError(f"data set {source!r}", f"has no {split} samples (x_{split} and y_{split})")
    if len(present) == 1:
        return present[0]
    shapes = [pair.x.shape[1:] for pair in present]
    if shapes[0] != shapes[1]:
        raise DataError(f"data set {source!r}", f"training samples are {shapes[0]}, test samples {shapes[1]}")
    return Pair(np.concatenate([pair.x for pair in present]), np.concatenate([pair.y for pair in present]))


def _held_out(y: Labels) -> Indices:
    """Return a mask of one fifth of every class, rounded down; the same for the same labels everywhere."""
    mask = np.zeros(len(y), dtype=bool)
    for label in np.unique(y):
        members = generator(_HELD_OUT_SEED, "held-out", int(label)).permutation(np.flatnonzero(y == label))
        mask[members[: int(len(members) * _HELD_OUT)]] = True
    return mask


def _samples(x: Samples, source: str) -> Samples:
    if x.dtype != np.uint8 and not np.issubdtype(x.dtype, np.floating):
        raise DataError(f"data set {source!r}", f"samples are {x.dtype}; save them as uint8 or float32")
    if x.dtype == np.uint8:
        return x[:, np.newaxis] if x.ndim == 3 else x  # pictures without a channel
    return x.astype(np.float32, copy=False)


def _labels(y: Samples, source: str) -> Labels:
    if not np.issubdtype(y.dtype, np.integer):
        raise DataError(f"data set {source!r}", f"labels are {y.dtype}; save them as whole numbers from 0")
    return y.astype(np.int64)


def _classes(stored: Stored, source: str) -> int:
    pairs = [pair for pair in (stored.whole, stored.train, stored.test) if pair is not None]
    return 1 + max((int(_labels(pair.y, source).max()) for pair in pairs if len(pair.y)), default=0)
