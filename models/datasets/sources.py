"""Where a data set comes from: `digits`, or a path to an NPZ, IDX or CSV file or a folder of IDX or images.

What every source gives is a `Stored`: what it holds of training and test samples. A source without a test
split (`x` and `y` alone) has one fifth of every class held out, always the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from models.datasets import digits, idx, images, npz, table
from models.datasets.dataset import Dataset, Indices, Labels, Samples, members_by_label
from models.datasets.stored import Pair, Stored
from trellis.descriptor_fields import MAX_CLASSES
from trellis.errors import DataError, Fault
from trellis.nearest import did_you_mean
from trellis.seeds import generator

Split = Literal["train", "test", "all"]

_NAMED = re.compile(r"([A-Za-z0-9][A-Za-z0-9_.-]*)=(.+)", re.ASCII)
_TABLE = re.compile(r"\.csv(\.gz)?$", re.IGNORECASE)
_LABELED = re.compile(r"(.+\.csv(?:\.gz)?)#(.+)", re.IGNORECASE)
_HELD_OUT = 0.2
_HELD_OUT_SEED = 42
_NO_TEST_REMEDY = (
    "give it x_test and y_test, or is_test, or a test/ folder; or take all: 'trellis predict --split all'"
)


@dataclass(frozen=True)
class Source:
    """What a source's text says, before anything is read.

    Attributes:
        name: What the data are called: as given, or after the file or folder.
        path: The file or folder; None for `digits`.
        label: The column of labels of a CSV file; None where the text names none.
    """

    name: str
    path: Path | None
    label: str | None = None

    def __str__(self) -> str:
        if self.path is None:
            return self.name
        return f"{self.name}={self.path}" + (f"#{self.label}" if self.label is not None else "")


def parse_source(text: str) -> Source:
    """Return what `digits`, `PATH`, `NAME=PATH` or, for CSV, `[NAME=]PATH#COLUMN` says.

    What there is under the whole text is meant, though its own name has a `=` or a `#`.

    Raises:
        DataError: The path may not be looked at.
    """
    if text == "digits":
        return Source(text, None)
    with _readable(text):
        named = _NAMED.fullmatch(text)
        whole, column = _path(text)
        if named is None or whole.exists():
            return Source(_stem(whole), whole, column)
        return Source(named[1], *_path(named[2]))


def _path(text: str) -> tuple[Path, str | None]:
    """Return the path and the column of labels, where the text names one."""
    labeled = None if Path(text).exists() else _LABELED.fullmatch(text)
    return (Path(labeled[1]), labeled[2]) if labeled else (Path(text), None)


def load(source: str, *, split: Split) -> Dataset:
    """Return the data that `source` names: `digits`, `PATH`, `NAME=PATH` or `[NAME=]FILE.csv#COLUMN`.

    An NPZ file holds `x_train, y_train, x_test, y_test`, or `x, y` and perhaps `is_test`; an IDX folder holds
    the four files of MNIST; an IDX file of images has its labels beside it; a CSV file has a header and its
    labels in the column `label` or COLUMN; a folder of images has a folder for every class. Without NAME the
    data set is named after the file or folder. Pictures, (samples, height, width) uint8, get an axis for one
    channel.

    Raises:
        DataError: It cannot be read, or is not what it should be.
        MissingExtra: Images need Pillow.
    """
    parsed = parse_source(source)
    if parsed.path is None:
        stored = digits.read()
    else:
        with _readable(str(parsed.path)):
            stored = _read(parsed.path, parsed.label)
    classes = _classes(stored, source)
    pair = _split(stored, split, source)
    return Dataset(parsed.name, _samples(pair.x, source), _labels(pair.y, source), classes)


@contextmanager
def _readable(path: str) -> Iterator[None]:
    """Make a DataError of what the file system says."""
    try:
        yield
    except OSError as error:
        where = str(error.filename or path)
        remedy = "let this user read it" if isinstance(error, PermissionError) else ""
        fault = Fault("", f"cannot be read: {error.strerror or error}", remedy)
        raise DataError(f"data set {where!r}", [fault]) from error


def _stem(path: Path) -> str:
    path = path.resolve() if path.name in ("", "..") else path
    if path.is_dir():
        return path.name
    return path.with_suffix("").stem if path.suffix == ".gz" else path.stem


def _read(path: Path, label: str | None) -> Stored:
    if path.is_dir():
        by_class = not idx.holds_images(path) and images.holds_folders(path)
        return images.read_folder(path) if by_class else idx.read_folder(path)
    if not path.is_file():
        hint = did_you_mean(str(path), ["digits"], before="; ")
        due = f"no such file or folder; give digits, PATH or NAME=PATH{hint}"
        raise DataError(f"data set {str(path)!r}", due)
    if _TABLE.search(path.name):
        return table.read(path, label)
    with path.open("rb") as file:
        start = file.read(4)
    if start[:2] == b"PK":
        return npz.read(path)
    if start[:2] in (b"\x1f\x8b", b"\x00\x00"):  # gzip, or IDX's two zeros
        return idx.read_images(path)
    problem = (
        f"starts with the bytes {start!r}, which is neither NPZ nor IDX, and its name does not end in .csv; "
        "write one with numpy.savez"
    )
    raise DataError(f"data set {str(path)!r}", problem)


def _split(stored: Stored, split: Split, source: str) -> Pair:
    if stored.whole is not None:
        if split == "all":
            return stored.whole
        labels = _labels(stored.whole.y, source)
        held_out = _held_out(labels)
        if split == "test" and len(labels) and not held_out.any():
            problem = (
                f"none of its {len(labels)} samples, labels {labels.min()} to {labels.max()}, is left "
                "to test: without a test split a fifth of every class is held out, and no class has 5"
            )
            raise DataError(f"data set {source!r}", [Fault("", problem, _NO_TEST_REMEDY)])
        return stored.whole.take(held_out if split == "test" else ~held_out)
    pairs = {"train": [stored.train], "test": [stored.test], "all": [stored.train, stored.test]}[split]
    present = [pair for pair in pairs if pair is not None]
    if not present:
        due = {
            "train": "x_train and y_train, train-* or train/",
            "test": "x_test and y_test, t10k-* or test/",
        }
        raise DataError(f"data set {source!r}", f"has no {split} samples ({due[split]})")
    if len(present) == 1:
        return present[0]
    return _joined(present[0], present[1], source)


def _joined(train: Pair, test: Pair, source: str) -> Pair:
    if train.x.shape[1:] != test.x.shape[1:]:
        problem = f"training samples are {train.x.shape[1:]}, test samples {test.x.shape[1:]}"
        raise DataError(f"data set {source!r}", problem)
    if (train.x.dtype == np.uint8) != (test.x.dtype == np.uint8):
        problem = (
            f"training samples are {train.x.dtype}, test samples {test.x.dtype}; only uint8 is divided by 255"
        )
        raise DataError(f"data set {source!r}", [Fault("", problem, "save both as one")])
    return Pair(np.concatenate([train.x, test.x]), np.concatenate([train.y, test.y]))


def _held_out(y: Labels) -> Indices:
    """Return a mask of one fifth of every class, rounded down; the same for the same labels everywhere."""
    mask = np.zeros(len(y), dtype=bool)
    for label, members in members_by_label(y):
        # Where the label is an id, a generator would be made for every sample.
        if count := int(len(members) * _HELD_OUT):
            mask[generator(_HELD_OUT_SEED, "held-out", label).permutation(members)[:count]] = True
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
    held = 1 + max((int(_labels(pair.y, source).max()) for pair in pairs if len(pair.y)), default=0)
    classes = max(held, stored.classes)
    if classes > MAX_CLASSES:
        problem = f"labels run to {classes - 1}, at most {MAX_CLASSES - 1} is due"
        raise DataError(
            f"data set {source!r}", [Fault("", problem, "number the classes from 0; an id is no label")]
        )
    return classes
