"""CSV files: a header, one row a sample, numbers in every column, one of which holds the labels.

Texts are never numbered here: two devices that hold other classes would number them otherwise.
"""

from __future__ import annotations

import csv
import gzip
import logging
import math
import re
import zlib
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from models.datasets.stored import MAX_BYTES, MOST_FAULTS, Pair, Stored
from trellis.errors import DataError, Fault
from trellis.nearest import did_you_mean

logger = logging.getLogger(__name__)

LABEL = "label"
"""The column of labels where the source names none."""

_MOST_COLUMNS = 2**16
_MOST_CHARACTERS = 2**22  # of one line: the most columns at 64 characters each
_LABEL_TEXT = re.compile(r"\s*[0-9]{1,9}\s*", re.ASCII)


@dataclass(frozen=True)
class _Header:
    """The columns' names, and which of them holds the labels."""

    columns: tuple[str, ...]
    label: int


def read(path: Path, label: str | None) -> Stored:
    """Return the table, x: (samples, features) float32 in the file's order of columns, without a split.

    Args:
        path: A `.csv` file, plain or gzipped: UTF-8, commas between cells, a header.
        label: The column of labels, whole numbers from 0; None means `label`.

    Raises:
        DataError: It cannot be read, has no such column, or cells are no numbers; up to ten are named, each
            with its line and column.
    """
    try:
        with path.open("rb") as raw:
            zipped = raw.read(2) == b"\x1f\x8b"
        # utf-8-sig: spreadsheets put a byte order mark before the first column's name.
        opened = gzip.open if zipped else open
        with opened(path, "rt", encoding="utf-8-sig", newline="") as file:
            return Stored(whole=_parsed(file, path, label))
    except UnicodeDecodeError as error:
        raise DataError(f"data set {str(path)!r}", f"is not UTF-8: {error}; save it as UTF-8") from error
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"data set {str(path)!r}", f"cannot be unpacked: {error}") from error


def _parsed(file: IO[str], path: Path, label: str | None) -> Pair:
    rows = _rows(file, path)
    header = _header(next(rows, (1, []))[1], path, label)
    features, labels = array("f"), array("q")
    faults: list[Fault] = []
    for line, row in rows:
        if not row:  # a blank line, such as the last one
            continue
        numbers = _numbers(row, header)
        if numbers is None:
            faults += _row_faults(row, header, line)
            if len(faults) >= MOST_FAULTS:
                faults = [*faults[:MOST_FAULTS], Fault("", "the rest of the file was not looked at")]
                break
        elif not faults:
            features.extend(numbers)
            labels.append(int(row[header.label]))
            if len(features) * features.itemsize > MAX_BYTES:
                raise DataError(f"data set {str(path)!r}", f"would take more than {MAX_BYTES} bytes")
    if faults:
        raise DataError(f"data set {str(path)!r}", faults)
    names = [name for name in header.columns if name != header.columns[header.label]]
    logger.info("data set %s: features %s; label %s", path, _listed(names), header.columns[header.label])
    # np.array, not np.frombuffer: it copies into memory that is the array's own.
    return Pair(np.array(features, np.float32).reshape(len(labels), len(names)), np.array(labels, np.int64))


def _rows(file: IO[str], path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield every row with the number of its (last) line."""
    reader = csv.reader(_lines(file, path), strict=True)
    try:
        for row in reader:
            yield reader.line_num, row
    except csv.Error as error:
        fault = Fault(f"line {reader.line_num}", f"cannot be read as CSV: {error}")
        raise DataError(f"data set {str(path)!r}", [fault]) from error


def _lines(file: IO[str], path: Path) -> Iterator[str]:
    """Yield lines of bounded length, so that a packed file without line breaks cannot fill the memory."""
    number = 0
    while line := file.readline(_MOST_CHARACTERS + 1):
        number += 1
        if len(line) > _MOST_CHARACTERS:
            problem = f"line {number} has more than {_MOST_CHARACTERS} characters"
            raise DataError(f"data set {str(path)!r}", problem)
        yield line


def _header(row: list[str], path: Path, label: str | None) -> _Header:
    columns = tuple(name.strip() for name in row)
    faults = list(_header_faults(columns))
    if not faults:
        wanted = LABEL if label is None else label
        if wanted in columns and len(columns) > 1:
            return _Header(columns, columns.index(wanted))
        faults.append(_no_label(columns, wanted, path))
    raise DataError(f"data set {str(path)!r}", faults)


def _header_faults(columns: tuple[str, ...]) -> Iterator[Fault]:
    if not columns:
        yield Fault("line 1", "is empty, a header that names the columns is due")
    elif len(columns) > _MOST_COLUMNS:
        yield Fault("line 1", f"names {len(columns)} columns, the limit is {_MOST_COLUMNS}")
    elif all(_is_number(name) for name in columns):
        came = _listed(columns)
        yield Fault("line 1", f"holds numbers only ({came}), a header that names the columns is due")
    else:
        for number, name in enumerate(columns, start=1):
            if not name:
                remedy = "with pandas: to_csv(..., index=False)" if number == 1 else "name or remove it"
                yield Fault("line 1", f"column {number} has no name", remedy)
        repeated = sorted(name for name, times in Counter(columns).items() if name and times > 1)
        if repeated:
            yield Fault("line 1", f"columns have the same name: {_listed(repeated)}", "rename all but one")


def _no_label(columns: tuple[str, ...], wanted: str, path: Path) -> Fault:
    if len(columns) == 1:
        problem = f"there is one column, {columns[0][:80]!r}; labels and at least one feature are due"
        return Fault("line 1", problem, "separate cells by commas")
    hint = did_you_mean(wanted, columns, after=" ")
    remedy = f"{hint}name the column of labels after the file: {path.name}#COLUMN"
    return Fault("line 1", f"no column is named {wanted!r}, there are {_listed(columns)}", remedy)


def _numbers(row: list[str], header: _Header) -> array[float] | None:
    """Return a row's features, or None if a cell of it is not what it should be.

    One pass without a look at single cells: this decides how long a large file takes.
    """
    if len(row) != len(header.columns) or not _LABEL_TEXT.fullmatch(row[header.label]):
        return None
    cells = "".join(row)
    if not _is_plain(cells):
        return None
    try:
        numbers = array("f", map(float, row[: header.label] + row[header.label + 1 :]))
    except ValueError:
        return None
    # float32 sums in float64 cannot overflow, so one look at the sum finds every NaN and infinity.
    return numbers if math.isfinite(sum(numbers)) else None


def _row_faults(row: list[str], header: _Header, line: int) -> Iterator[Fault]:
    if len(row) != len(header.columns):
        problem = f"has {len(row)} cells, the header names {len(header.columns)} columns"
        yield Fault(f"line {line}", problem)
        return
    for number, (name, cell) in enumerate(zip(header.columns, row, strict=True)):
        fault = _label_fault(cell) if number == header.label else _feature_fault(cell)
        if fault is not None:
            yield Fault(f"line {line}, column {name!r}", *fault)


def _label_fault(cell: str) -> tuple[str, str] | None:
    if _LABEL_TEXT.fullmatch(cell):
        return None
    came = f"label {cell[:40]!r} came" if cell.strip() else "the label is empty"
    return f"{came}, a whole number from 0 is due", "number the classes, on every device alike"


def _feature_fault(cell: str) -> tuple[str, str] | None:
    if not cell.strip():
        return "is empty, a number is due", "fill it in, or remove the row"
    if not _is_number(cell):
        return f"{cell[:40]!r} came, a number is due", "write it as a number, on every device alike"
    if not math.isfinite(array("f", [float(cell)])[0]):
        problem = f"{cell[:40]!r} came, a finite number within float32 is due"
        return problem, "replace it, or remove the row"
    return None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return _is_plain(text)


def _is_plain(text: str) -> bool:
    """Whether Python's float would not read more than a number: it takes 1_000 and any script's digits."""
    return text.isascii() and "_" not in text


def _listed(names: tuple[str, ...] | list[str]) -> str:
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    return ", ".join(name[:40] for name in names[:20]) + more
