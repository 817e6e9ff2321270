"""NPZ files: numpy's zip of arrays, without pickled objects."""

from __future__ import annotations

import lzma
import math
import struct
import tokenize
import zipfile
import zlib
from pathlib import Path

import numpy as np

from models.datasets.dataset import Samples
from models.datasets.stored import MAX_BYTES, Pair, Stored, paired
from trellis.errors import DataError

_DUE = "x_train, y_train, x_test and y_test, or x and y"

# What zipfile and numpy raise at damaged bytes; RuntimeError: encrypted, or compressed in an unknown way.
_UNREADABLE = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    tokenize.TokenError,
    EOFError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    OverflowError,
)


def read(path: Path) -> Stored:
    """Return what the file holds.

    Raises:
        DataError: It is no NPZ file, keys are missing, lengths differ, or an array holds objects or is huge.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            keys = {name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")}
            if {"x", "y"} <= keys:
                whole = _pair(archive, path, "x", "y")
                return _marked(archive, path, whole) if "is_test" in keys else Stored(whole=whole)
            pairs = {
                split: _pair(archive, path, f"x_{split}", f"y_{split}")
                for split in ("train", "test")
                if {f"x_{split}", f"y_{split}"} <= keys
            }
    except _UNREADABLE as error:
        raise DataError(f"data set {str(path)!r}", f"cannot be read as NPZ: {error}") from error
    if not pairs:
        came = ", ".join(sorted(keys)[:20]) or "nothing"
        raise DataError(f"data set {str(path)!r}", f"holds {came}; {_DUE} are due")
    return Stored(train=pairs.get("train"), test=pairs.get("test"))


def _marked(archive: zipfile.ZipFile, path: Path, whole: Pair) -> Stored:
    is_test = _array(archive, path, "is_test")
    if is_test.shape != whole.y.shape or is_test.dtype != np.bool_:
        problem = f"is_test is {is_test.dtype} {is_test.shape}, bool {whole.y.shape} is due"
        raise DataError(f"data set {str(path)!r}", problem)
    return Stored(train=whole.take(~is_test), test=whole.take(is_test))


def _pair(archive: zipfile.ZipFile, path: Path, x: str, y: str) -> Pair:
    return paired(_array(archive, path, x), _array(archive, path, y), where=str(path), names=(x, y))


def _array(archive: zipfile.ZipFile, path: Path, key: str) -> Samples:
    with archive.open(f"{key}.npy") as member:
        version = np.lib.format.read_magic(member)
        reader = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        if version not in reader:
            raise ValueError(f"{key} has NPY version {version}")
        shape, _, dtype = reader[version](member)
    # Looked at before anything is allocated: a header may claim any size.
    if dtype.hasobject:
        problem = f"{key} holds Python objects, which would need pickle; save plain numbers"
        raise DataError(f"data set {str(path)!r}", problem)
    if (size := math.prod(shape) * dtype.itemsize) > MAX_BYTES:
        problem = f"{key} would take {size} bytes, the limit is {MAX_BYTES}"
        raise DataError(f"data set {str(path)!r}", problem)
    if size > (there := archive.getinfo(f"{key}.npy").file_size):
        problem = f"{key} has a header that says {size} bytes, but only {there} are there"
        raise DataError(f"data set {str(path)!r}", problem)
    with archive.open(f"{key}.npy") as member:
        array: Samples = np.lib.format.read_array(member, allow_pickle=False)
    return array
