"""CSV files that the tests write: what is read, and what is said of every cell that cannot be."""

from __future__ import annotations

import contextlib
import gzip
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.backends import TrainPlan, open_backend
from models.datasets import Source, load, parse_source, scale, stored, table
from trellis.errors import DataError

ROWS = "age,label,hours\n39,0,40\n50.5,1,13\n38,2,-1e3\n"
X = [[39.0, 40.0], [50.5, 13.0], [38.0, -1000.0]]


def _file(folder: Path, text: str, name: str = "adult.csv") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def _message(source: object) -> str:
    with pytest.raises(DataError) as caught:
        load(str(source), split="all")
    return str(caught.value)


def test_the_columns_but_the_label_are_the_features_in_their_order(tmp_path: Path) -> None:
    read = load(str(_file(tmp_path, ROWS)), split="all")
    assert (read.name, read.shape, read.classes) == ("adult", (2,), 3)
    assert (read.x.dtype, read.x.tolist()) == (np.float32, X)
    assert (read.y.dtype, read.y.tolist()) == (np.int64, [0, 1, 2])


@pytest.mark.parametrize("zipped", [False, True])
def test_the_column_of_labels_may_stand_after_the_file(tmp_path: Path, zipped: bool) -> None:
    text = "income class,age\n1,2.5\n0,3\n"
    path = _file(tmp_path, text)
    if zipped:
        path = tmp_path / "adult.csv.gz"
        path.write_bytes(gzip.compress(text.encode()))
    read = load(f"census={path}#income class", split="all")
    assert (read.name, read.x.tolist(), read.y.tolist()) == ("census", [[2.5], [3.0]], [1, 0])


def test_a_byte_order_mark_quotes_blanks_and_blank_lines_are_no_matter(tmp_path: Path) -> None:
    text = '\ufeff"label", age ,"b,c"\r\n"1", 2,3\r\n\r\n 0 ,4,5\r\n\r\n'
    read = load(str(_file(tmp_path, text)), split="all")
    assert (read.x.tolist(), read.y.tolist()) == ([[2.0, 3.0], [4.0, 5.0]], [1, 0])


def test_one_fifth_of_every_class_is_held_out(tmp_path: Path) -> None:
    rows = "".join(f"{number},{number % 3}\n" for number in range(60))
    path = _file(tmp_path, "x,label\n" + rows)
    train, test = load(str(path), split="train"), load(str(path), split="test")
    assert np.bincount(test.y).tolist() == [4, 4, 4]
    assert sorted([*train.x[:, 0], *test.x[:, 0]]) == list(range(60))


def test_a_hash_in_a_files_own_name_is_its_name(tmp_path: Path) -> None:
    path = _file(tmp_path, ROWS, "a.csv#b.csv")
    assert parse_source(str(path)) == Source("a.csv#b", path)
    assert len(load(str(path), split="all")) == 3


@pytest.mark.parametrize("text", ["digits", "adult=/d/a.csv.gz#income", "m=/d/m.npz"])
def test_a_source_says_itself(text: str) -> None:
    assert str(parse_source(text)) == text


def test_a_label_belongs_to_csv_alone(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros((2, 2)), y=np.zeros(2, int))
    assert "no such file or folder" in _message(f"{tmp_path / 'a.npz'}#label")


def test_without_a_column_of_labels_the_columns_are_listed(tmp_path: Path) -> None:
    path = _file(tmp_path, "age,income\n1,0\n")
    assert _message(path) == (
        f"data set '{path}': line 1: no column is named 'label', there are age, income "
        "(name the column of labels after the file: adult.csv#COLUMN)"
    )
    assert "no column is named 'incame', there are age, income (did you mean 'income'? " in _message(
        f"{path}#incame"
    )


HEADERS = {
    "empty": ("", "line 1: is empty, a header that names the columns is due"),
    "blank": ("\nlabel,a\n", "line 1: is empty, a header that names the columns is due"),
    "numbers": (
        "1,2.5\n0,3\n",
        "line 1: holds numbers only (1, 2.5), a header that names the columns is due",
    ),
    "index": (
        ",age,label\n0,1,0\n",
        "line 1: column 1 has no name (with pandas: to_csv(..., index=False))",
    ),
    "unnamed": ("age,,label\n0,1,0\n", "line 1: column 2 has no name (name or remove it)"),
    "twice": ("a,a,label\n1,2,0\n", "line 1: columns have the same name: a (rename all but one)"),
    "semicolons": (
        "age;label\n1;0\n",
        "line 1: there is one column, 'age;label'; labels and at least one feature are due "
        "(separate cells by commas)",
    ),
    "label alone": (
        "label\n1\n",
        "line 1: there is one column, 'label'; labels and at least one feature are due "
        "(separate cells by commas)",
    ),
}


@pytest.mark.parametrize("case", HEADERS)
def test_a_header_that_names_no_columns_is_refused(tmp_path: Path, case: str) -> None:
    text, problem = HEADERS[case]
    path = _file(tmp_path, text)
    assert _message(path) == f"data set '{path}': {problem}"


_FEATURE = "a number is due (write it as a number, on every device alike)"
_FINITE = "a finite number within float32 is due (replace it, or remove the row)"
_LABEL = "a whole number from 0 is due (number the classes, on every device alike)"
CELLS = {
    "text": ("Doctorate,0", f"line 3, column 'age': 'Doctorate' came, {_FEATURE}"),
    "decimal comma": ('"1,5",0', f"line 3, column 'age': '1,5' came, {_FEATURE}"),
    "underscore": ("1_0,0", f"line 3, column 'age': '1_0' came, {_FEATURE}"),
    "other digits": ("١,0", f"line 3, column 'age': '١' came, {_FEATURE}"),
    "long text": ("x" * 99 + ",0", f"line 3, column 'age': '{'x' * 40}' came, {_FEATURE}"),
    "empty": (
        " ,0",
        "line 3, column 'age': is empty, a number is due (fill it in, or remove the row)",
    ),
    "nan": ("NaN,0", f"line 3, column 'age': 'NaN' came, {_FINITE}"),
    "infinity": ("-inf,0", f"line 3, column 'age': '-inf' came, {_FINITE}"),
    "beyond float32": ("1e39,0", f"line 3, column 'age': '1e39' came, {_FINITE}"),
    "label text": ("1,>50K", f"line 3, column 'label': label '>50K' came, {_LABEL}"),
    "label below 0": ("1,-1", f"line 3, column 'label': label '-1' came, {_LABEL}"),
    "label with decimals": ("1,1.0", f"line 3, column 'label': label '1.0' came, {_LABEL}"),
    "label empty": ("1,", f"line 3, column 'label': the label is empty, {_LABEL}"),
    "few cells": ("1", "line 3: has 1 cells, the header names 2 columns"),
    "many cells": ("1,0,", "line 3: has 3 cells, the header names 2 columns"),
    "quotes": ('"1"2,0', "line 3: cannot be read as CSV: ',' expected after '\"'"),
}


@pytest.mark.parametrize("case", CELLS)
def test_a_faulty_cell_is_named_with_line_column_and_value(tmp_path: Path, case: str) -> None:
    row, problem = CELLS[case]
    path = _file(tmp_path, f"age,label\n1,0\n{row}\n2,1\n")
    assert _message(path) == f"data set '{path}': {problem}"


def test_every_faulty_cell_is_named_up_to_ten(tmp_path: Path) -> None:
    path = _file(tmp_path, "age,label\n,\n1,0\nx,1\n")
    with pytest.raises(DataError) as caught:
        load(str(path), split="all")
    assert [fault.field for fault in caught.value.faults] == [
        "line 2, column 'age'",
        "line 2, column 'label'",
        "line 4, column 'age'",
    ]
    path = _file(tmp_path, "age,label\n" + "x,0\n" * 50)
    with pytest.raises(DataError) as caught:
        load(str(path), split="all")
    assert len(caught.value.faults) == 11
    assert str(caught.value.faults[-1]) == "the rest of the file was not looked at"


def test_a_file_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "latin.csv"
    path.write_bytes("größe,label\n1,0\n".encode("latin-1"))
    assert _message(path).startswith(f"data set '{path}': is not UTF-8: ")
    assert _message(path).endswith("; save it as UTF-8")


@pytest.mark.parametrize("content", [gzip.compress(ROWS.encode(), mtime=0)[:-9], b"\x1f\x8b no gzip"])
def test_a_broken_gzip_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "cut.csv.gz"
    path.write_bytes(content)
    assert _message(path).startswith(f"data set '{path}': cannot be unpacked: ")


def test_size_and_columns_have_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _file(tmp_path, ",".join(["label", *(f"c{number}" for number in range(2**16))]) + "\n")
    assert _message(path) == f"data set '{path}': line 1: names 65537 columns, the limit is 65536"
    bomb = tmp_path / "bomb.csv.gz"
    bomb.write_bytes(gzip.compress(b"label,a\n" + b"0" * 2**23))
    assert _message(bomb) == f"data set '{bomb}': line 2 has more than 4194304 characters"
    monkeypatch.setattr(table, "MAX_BYTES", 20)
    assert _message(_file(tmp_path, ROWS)).endswith("adult.csv': would take more than 20 bytes")
    assert stored.MAX_BYTES > 20


@pytest.mark.parametrize("model", ["mlp", "softmax"])
def test_models_for_flat_samples_train_on_a_table(tmp_path: Path, model: str) -> None:
    rows = "".join(f"{number % 2},{number % 2},{number % 2 * 2 - 1},0.5\n" for number in range(60))
    train = scale(load(str(_file(tmp_path, "label,a,b,c\n" + rows)), split="train"), None)
    backend = open_backend("torch", model, shape=(3,), classes=2, seed=0)
    plan = TrainPlan(epochs=10, steps=None, batch_size=8, learning_rate=0.1)
    arrays = backend.train(backend.initial(), train, plan, np.random.default_rng(0)).arrays
    assert backend.evaluate(arrays, train).accuracy == 1.0


@settings(max_examples=300, deadline=None)
@given(content=st.one_of(st.binary(max_size=200), st.text(alphabet='0123,.\n"ae_ -', max_size=200)))
def test_any_file_is_read_or_refused_and_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, content: bytes | str
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.csv"
    path.write_bytes(b"label,a\n" + (content if isinstance(content, bytes) else content.encode()))
    with contextlib.suppress(DataError):
        assert np.isfinite(load(str(path), split="all").x).all()
