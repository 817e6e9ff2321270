"""Reading data sets from files that the tests write, and the digits."""

from __future__ import annotations

import contextlib
import gzip
import io
import struct
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from models.datasets import Source, load, parse_source, stored
from trellis.errors import DataError

MNIST = Path(__file__).parents[3] / "shared" / "data" / "mnist.npz"

X_TRAIN = np.arange(4 * 3 * 2, dtype=np.uint8).reshape(4, 3, 2)
Y_TRAIN = np.array([0, 1, 2, 1], dtype=np.uint8)
X_TEST = X_TRAIN[:2] + 100
Y_TEST = np.array([4, 0], dtype=np.uint8)


def _npz(path: Path, **arrays: Any) -> Path:
    np.savez_compressed(path, **arrays)
    return path


def _idx(array: np.ndarray[Any, Any]) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def _idx_folder(folder: Path, *, zipped: bool) -> Path:
    folder.mkdir()
    pairs = {"train": (X_TRAIN, Y_TRAIN), "t10k": (X_TEST, Y_TEST)}
    for prefix, (x, y) in pairs.items():
        for kind, array in (("images-idx3", x), ("labels-idx1", y)):
            content = gzip.compress(_idx(array)) if zipped else _idx(array)
            (folder / f"{prefix}-{kind}-ubyte{'.gz' if zipped else ''}").write_bytes(content)
    return folder


def _fault(source: object, split: Any = "train") -> str:
    with pytest.raises(DataError) as caught:
        load(str(source), split=split)
    return str(caught.value)


def _assert_is_ours(read: Any, name: str) -> None:
    train, test, whole = (read(split) for split in ("train", "test", "all"))
    assert (train.name, train.shape, train.classes) == (name, (1, 3, 2), 5)
    assert np.array_equal(train.x[:, 0], X_TRAIN)
    assert train.x.dtype == np.uint8
    assert (train.y.dtype, train.y.tolist()) == (np.int64, [0, 1, 2, 1])
    assert np.array_equal(test.x[:, 0], X_TEST)
    assert (test.classes, test.y.tolist()) == (5, [4, 0])
    assert whole.y.tolist() == [0, 1, 2, 1, 4, 0]


def test_an_npz_file_is_read_and_named_after_its_stem(tmp_path: Path) -> None:
    path = _npz(tmp_path / "toy.npz", x_train=X_TRAIN, y_train=Y_TRAIN, x_test=X_TEST, y_test=Y_TEST)
    _assert_is_ours(lambda split: load(str(path), split=split), "toy")


def test_a_source_may_carry_the_name_that_the_task_wants(tmp_path: Path) -> None:
    path = _npz(tmp_path / "a=b.npz", x_train=X_TRAIN, y_train=Y_TRAIN)
    assert load(f"mnist={path}", split="train").name == "mnist"
    assert load(str(path), split="train").name == "a=b"


def test_what_there_is_under_the_whole_text_is_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    _npz(Path("lr=0.1.npz"), x_train=X_TRAIN, y_train=Y_TRAIN)
    Path("lr=0.1.csv").touch()
    assert load("lr=0.1.npz", split="train").name == "lr=0.1"
    assert load("rates=lr=0.1.npz", split="train").name == "rates"
    assert parse_source("lr=0.1.csv#rate") == Source("lr=0.1", Path("lr=0.1.csv"), "rate")
    assert parse_source("lr=0.2.npz") == Source("lr", Path("0.2.npz"))


@pytest.mark.parametrize("zipped", [False, True])
def test_an_idx_folder_is_read_plain_and_zipped(tmp_path: Path, zipped: bool) -> None:
    folder = _idx_folder(tmp_path / "toy", zipped=zipped)
    _assert_is_ours(lambda split: load(str(folder), split=split), "toy")


def test_one_idx_file_has_its_labels_beside_it(tmp_path: Path) -> None:
    folder = _idx_folder(tmp_path / "toy", zipped=True)
    read = load(f"toy={folder / 'train-images-idx3-ubyte.gz'}", split="all")
    assert (read.name, read.y.tolist()) == ("toy", [0, 1, 2, 1])
    assert np.array_equal(read.x[:, 0], X_TRAIN)


def test_without_a_test_split_one_fifth_of_every_class_is_held_out(tmp_path: Path) -> None:
    x = np.arange(100, dtype=np.float64).reshape(50, 2)
    path = _npz(tmp_path / "flat.npz", x=x, y=np.arange(50) % 5)
    train, test, whole = (load(str(path), split=split) for split in ("train", "test", "all"))
    assert np.bincount(test.y).tolist() == [2, 2, 2, 2, 2]
    assert sorted([*train.x[:, 0], *test.x[:, 0]]) == x[:, 0].tolist() == whole.x[:, 0].tolist()
    assert whole.x.dtype == np.float32
    assert np.array_equal(load(str(path), split="test").x, test.x)


def test_the_fifth_that_is_held_out_stays_the_same_from_version_to_version(tmp_path: Path) -> None:
    y = np.array([0, 0, 0, 0, 0, 2, 2, 2, 2, 2, 9, 9])[np.arange(24) * 5 % 12]
    path = _npz(tmp_path / "kept.npz", x=np.arange(24.0).reshape(24, 1), y=y)
    # As 0.1.0 draws them: two of each ten, none of the four.
    assert load(str(path), split="test").x[:, 0].tolist() == [4, 5, 10, 11]


def test_as_many_labels_as_samples_take_no_longer_than_few(tmp_path: Path) -> None:
    y = np.arange(200_000)
    path = _npz(tmp_path / "ids.npz", x=np.zeros((len(y), 1), np.uint8), y=y)
    begun = time.thread_time()
    assert len(load(str(path), split="train")) == len(y)
    # 0.2 s; looking all labels through for each takes 13 s.
    assert time.thread_time() - begun < 4


def test_labels_beyond_those_of_any_task_are_refused(tmp_path: Path) -> None:
    path = _npz(tmp_path / "ids.npz", x=X_TRAIN, y=np.array([0, 1, 1_000_000, 2]))
    assert _fault(path) == (
        f"data set '{path}': labels run to 1000000, at most 999999 is due "
        "(number the classes from 0; an id is no label)"
    )
    assert load(str(_npz(path, x=X_TRAIN, y=np.array([0, 1, 999_999, 2]))), split="train").classes == 10**6


def test_a_mark_of_test_samples_is_kept(tmp_path: Path) -> None:
    path = _npz(tmp_path / "m.npz", x=X_TRAIN, y=Y_TRAIN, is_test=np.array([True, False, False, True]))
    assert np.array_equal(load(str(path), split="test").x[:, 0], X_TRAIN[[0, 3]])
    assert len(load(str(path), split="all")) == 4


def test_digits_are_split_as_scikit_learn_does() -> None:
    train, test = load("digits", split="train"), load("digits", split="test")
    assert (len(train), len(test), train.shape, train.classes) == (1437, 360, (1, 8, 8), 10)
    assert (train.name, train.x.dtype, float(train.x.min()), float(train.x.max())) == (
        "digits",
        np.float32,
        0,
        1,
    )
    bunch = load_digits()
    x = (bunch.images / 16.0).astype(np.float32)[:, np.newaxis]
    parts = train_test_split(x, bunch.target, test_size=0.2, stratify=bunch.target, random_state=42)
    for came, due in zip((train.x, test.x, train.y, test.y), parts, strict=True):
        assert np.array_equal(came, due)


@pytest.mark.skipif(not MNIST.exists(), reason="needs mnist.npz beside the project")
def test_mnist_is_mnist() -> None:
    train, test = load(str(MNIST), split="train"), load(str(MNIST), split="test")
    assert (train.name, len(train), len(test), train.shape, train.classes) == (
        "mnist",
        60_000,
        10_000,
        (1, 28, 28),
        10,
    )
    assert train.y[:5].tolist() == [5, 0, 4, 1, 9]


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    path = tmp_path / "none.npz"
    assert _fault(path) == f"data set '{path}': no such file or folder; give digits, PATH or NAME=PATH"


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "table.txt"
    path.write_text("a,b\n1,2\n")
    assert _fault(path) == (
        f"data set '{path}': starts with the bytes b'a,b\\n', which is neither NPZ nor IDX, and its name "
        "does not end in .csv; write one with numpy.savez"
    )


def test_missing_keys_are_said_with_those_that_came(tmp_path: Path) -> None:
    path = _npz(tmp_path / "k.npz", images=X_TRAIN, labels=Y_TRAIN)
    due = "x_train, y_train, x_test and y_test, or x and y are due"
    assert _fault(path) == f"data set '{path}': holds images, labels; {due}"


def test_a_split_that_is_not_there_is_said(tmp_path: Path) -> None:
    path = _npz(tmp_path / "t.npz", x_train=X_TRAIN, y_train=Y_TRAIN)
    assert (
        _fault(path, "test") == f"data set '{path}': has no test samples (x_test and y_test, t10k-* or test/)"
    )


def test_all_is_not_made_of_bytes_and_floats(tmp_path: Path) -> None:
    floats = X_TEST.astype(np.float32) / 255
    path = _npz(tmp_path / "m.npz", x_train=X_TRAIN, y_train=Y_TRAIN, x_test=floats, y_test=Y_TEST)
    assert _fault(path, "all") == (
        f"data set '{path}': training samples are uint8, test samples float32; only uint8 is divided by 255 "
        "(save both as one)"
    )
    assert [load(str(path), split=split).x.dtype for split in ("train", "test")] == [np.uint8, np.float32]
    double = X_TRAIN.astype(np.float64)
    path = _npz(tmp_path / "f.npz", x_train=double, y_train=Y_TRAIN, x_test=floats, y_test=Y_TEST)
    assert load(str(path), split="all").x.dtype == np.float32


def test_lengths_must_agree(tmp_path: Path) -> None:
    path = _npz(tmp_path / "l.npz", x=X_TRAIN, y=Y_TRAIN[:3])
    assert _fault(path) == f"data set '{path}': x has 4 samples, y has 3 labels; they must be as many"


def test_labels_must_be_one_whole_number_a_sample(tmp_path: Path) -> None:
    path = _npz(tmp_path / "o.npz", x=X_TRAIN, y=np.eye(4, dtype=np.uint8))
    assert _fault(path) == f"data set '{path}': y has shape (4, 4), (samples,) is due"
    path = _npz(tmp_path / "f.npz", x=X_TRAIN, y=np.zeros(4))
    assert _fault(path) == f"data set '{path}': labels are float64; save them as whole numbers from 0"


def test_samples_must_be_bytes_or_floats(tmp_path: Path) -> None:
    path = _npz(tmp_path / "i.npz", x=X_TRAIN.astype(np.int32), y=Y_TRAIN)
    assert _fault(path) == f"data set '{path}': samples are int32; save them as uint8 or float32"


def test_objects_are_refused_unread(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.write_text, (tmp_path / "went-off", "")

    path = _npz(tmp_path / "p.npz", x=np.array([Bomb(), Bomb()], dtype=object), y=np.array([0, 1]))
    message = _fault(path)
    assert (
        message == f"data set '{path}': x holds Python objects, which would need pickle; save plain numbers"
    )
    assert not (tmp_path / "went-off").exists()


@pytest.mark.parametrize(
    ("shape", "problem"),
    [
        ((2**40, 28, 28), f"would take {2**40 * 784} bytes, the limit is {stored.MAX_BYTES}"),
        ((2**20, 28), f"has a header that says {2**20 * 28} bytes, but only 128 are there"),
    ],
)
def test_a_header_that_asks_for_too_much_is_refused_before_memory_is_taken(
    tmp_path: Path, shape: tuple[int, ...], problem: str
) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
    path = tmp_path / "huge.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", header.getvalue())
        archive.writestr("y.npy", header.getvalue())
    assert _fault(path) == f"data set '{path}': x {problem}"


@pytest.mark.parametrize("content", [b"PK\x03\x04 and then nothing", b"PK\x05\x06" + bytes(18)])
def test_a_broken_zip_is_a_data_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "b.npz"
    path.write_bytes(content)
    assert _fault(path).startswith(f"data set '{path}': ")


def test_a_cut_npz_member_is_a_data_error(tmp_path: Path) -> None:
    path = tmp_path / "c.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", b"\x93NUMPY\x01\x00")
        archive.writestr("y.npy", b"")
    assert "cannot be read as NPZ" in _fault(path)


def test_a_folder_without_idx_files_is_refused(tmp_path: Path) -> None:
    due = (
        "holds neither train-images-idx3-ubyte[.gz] nor a folder of images a class; "
        "for NPZ or CSV give the file itself"
    )
    assert _fault(tmp_path) == f"data set '{tmp_path}': {due}"


def test_images_without_labels_are_refused(tmp_path: Path) -> None:
    folder = _idx_folder(tmp_path / "toy", zipped=False)
    (folder / "train-labels-idx1-ubyte").unlink()
    images = folder / "train-images-idx3-ubyte"
    due = "its labels are missing: train-labels-idx1-ubyte[.gz] is due beside it"
    assert _fault(folder) == _fault(images) == f"data set '{images}': {due}"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (_idx(X_TRAIN)[:-3], "its header says (4, 3, 2), so 24 bytes are due, but 21 bytes follow"),
        (_idx(X_TRAIN) + b"!", "its header says (4, 3, 2), so 24 bytes are due, but more follows"),
        (_idx(X_TRAIN)[:9], "ends within its header; download it again"),
        (b"\0\0\x0d\x03", "starts with 00 00 0d 03; 00 00 08 and the number of dimensions are due"),
        (b"\0\0\x08\x09", "has 9 dimensions, 1 to 4 are due"),
        (
            b"\0\0\x08\x03" + b"\xff" * 12,
            f"would take {(2**32 - 1) ** 3} bytes, the limit is {stored.MAX_BYTES}",
        ),
        (gzip.compress(_idx(X_TRAIN), mtime=0)[:-12], "cannot be read as IDX: "),
        (b"\x1f\x8b not gzip at all", "cannot be read as IDX: "),
    ],
)
def test_a_malformed_idx_file_is_refused(tmp_path: Path, content: bytes, problem: str) -> None:
    folder = _idx_folder(tmp_path / "toy", zipped=False)
    path = folder / "train-images-idx3-ubyte"
    path.write_bytes(content)
    assert _fault(folder).startswith(f"data set '{path}': {problem}")


_STORED = io.BytesIO()
np.savez(_STORED, x=X_TRAIN, y=Y_TRAIN)
_INTACT = {"npz": _STORED.getvalue(), "idx": _idx(X_TRAIN), "gz": gzip.compress(_idx(X_TRAIN), mtime=0)}


@settings(max_examples=400, deadline=None)
@given(
    kind=st.sampled_from(sorted(_INTACT)),
    edits=st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), min_size=1, max_size=4),
    cut=st.one_of(st.none(), st.integers(0, 2000)),
)
def test_a_damaged_file_is_read_or_refused_and_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, kind: str, edits: list[tuple[int, int]], cut: int | None
) -> None:
    content = bytearray(_INTACT[kind])
    for position, byte in edits:
        content[position % len(content)] = byte
    folder = tmp_path_factory.getbasetemp()
    (folder / "labels").write_bytes(_idx(Y_TRAIN))
    path = folder / "images"
    path.write_bytes(content[:cut])
    with contextlib.suppress(DataError):
        load(str(path), split="all")


def test_too_few_samples_to_hold_any_out_are_counted_and_their_labels_told(tmp_path: Path) -> None:
    # 4 of each class 0 to 4: a fifth of 4, rounded down, is none.
    np.savez(tmp_path / "few.npz", x=np.zeros((20, 3), np.float32), y=np.repeat(np.arange(5), 4))
    with pytest.raises(DataError) as caught:
        load(str(tmp_path / "few.npz"), split="test")
    assert "none of its 20 samples, labels 0 to 4, is left to test" in str(caught.value)
    assert "--split all" in str(caught.value)
    assert len(load(str(tmp_path / "few.npz"), split="train")) == 20
