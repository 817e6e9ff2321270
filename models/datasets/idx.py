"""IDX files, the format of MNIST's distribution (LeCun, Cortes, Burges), plain or gzipped.

Big-endian: two zero bytes, the type (0x08 is unsigned byte), the number of dimensions, each dimension as
uint32, then the numbers.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import IO, cast

import numpy as np

from models.datasets.dataset import Samples
from models.datasets.stored import MAX_BYTES, Pair, Stored, paired
from trellis.errors import DataError

_UNSIGNED_BYTE = 0x08
_MOST_DIMENSIONS = 4
_PREFIXES = {"train": "train", "test": "t10k"}


def read_folder(folder: Path) -> Stored:
    """Return what the folder's `train-images-idx3-ubyte[.gz]` and its three companions hold.

    Raises:
        DataError: None is there, one lacks its labels, or one is malformed.
    """
    pairs = {}
    for split, prefix in _PREFIXES.items():
        images = _first_images(folder, prefix)
        if images is not None:
            pairs[split] = _pair(images)
    if not pairs:
        problem = (
            "holds neither train-images-idx3-ubyte[.gz] nor a folder of images a class; "
            "for NPZ or CSV give the file itself"
        )
        raise DataError(f"data set {str(folder)!r}", problem)
    return Stored(train=pairs.get("train"), test=pairs.get("test"))


def holds_images(folder: Path) -> bool:
    """Whether the folder holds IDX files of images under the names of MNIST's."""
    return any(_first_images(folder, prefix) is not None for prefix in _PREFIXES.values())


def read_images(path: Path) -> Stored:
    """Return what one file of images and the file of labels beside it hold, without a split.

    Raises:
        DataError: The labels are missing, or one of both is malformed.
    """
    return Stored(whole=_pair(path))


def _pair(images: Path) -> Pair:
    base = images.name.removesuffix(".gz").replace("images", "labels").replace("idx3", "idx1")
    labels = _first_file(images.parent, base)
    if labels is None or base == images.name.removesuffix(".gz"):
        raise DataError(f"data set {str(images)!r}", f"its labels are missing: {base}[.gz] is due beside it")
    return paired(_array(images), _array(labels), where=str(images.parent), names=(images.name, labels.name))


def _first_images(folder: Path, prefix: str) -> Path | None:
    return _first_file(folder, f"{prefix}-images-idx3-ubyte", f"{prefix}-images.idx3-ubyte")


def _first_file(folder: Path, *names: str) -> Path | None:
    candidates = (folder / f"{name}{suffix}" for name in names for suffix in ("", ".gz"))
    return next((path for path in candidates if path.is_file()), None)


def _array(path: Path) -> Samples:
    try:
        with path.open("rb") as raw:
            zipped = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            return _parsed(cast(IO[bytes], gzip.GzipFile(fileobj=raw)) if zipped else raw, path)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"data set {str(path)!r}", f"cannot be read as IDX: {error}") from error


def _parsed(file: IO[bytes], path: Path) -> Samples:
    start = file.read(4)
    if len(start) < 4 or start[:2] != b"\x00\x00" or start[2] != _UNSIGNED_BYTE:
        problem = f"starts with {start.hex(' ') or 'nothing'}; 00 00 08 and the number of dimensions are due"
        raise DataError(f"data set {str(path)!r}", problem)
    dimensions = start[3]
    if not 1 <= dimensions <= _MOST_DIMENSIONS:
        problem = f"has {dimensions} dimensions, 1 to {_MOST_DIMENSIONS} are due"
        raise DataError(f"data set {str(path)!r}", problem)
    sizes = file.read(4 * dimensions)
    if len(sizes) < 4 * dimensions:
        raise DataError(f"data set {str(path)!r}", "ends within its header; download it again")
    shape = struct.unpack(f">{dimensions}I", sizes)
    due = math.prod(shape)
    if due > MAX_BYTES:
        raise DataError(f"data set {str(path)!r}", f"would take {due} bytes, the limit is {MAX_BYTES}")
    content = _read_up_to(file, due + 1)
    if len(content) != due:
        came = f"{len(content)} bytes follow" if len(content) < due else "more follows"
        raise DataError(
            f"data set {str(path)!r}", f"its header says {shape}, so {due} bytes are due, but {came}"
        )
    return np.frombuffer(bytes(content), dtype=np.uint8).reshape(shape)


def _read_up_to(file: IO[bytes], limit: int) -> bytearray:
    """Read piece by piece, so that memory grows with what is there and not with what a header claims."""
    content = bytearray()
    while len(content) < limit and (piece := file.read(min(2**20, limit - len(content)))):
        content += piece
    return content
