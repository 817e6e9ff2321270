"""Folders of images by class that the tests write: what is read, and what is said of what cannot be."""

from __future__ import annotations

import contextlib
import io
import struct
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from models.datasets import images, load
from trellis.errors import DataError, MissingExtra

GREY = np.arange(6, dtype=np.uint8).reshape(2, 3)  # 3 wide, 2 high
COLOR = np.arange(18, dtype=np.uint8).reshape(2, 3, 3)
BROKEN = "is not a PNG, JPEG or BMP image, or is broken: "


def _image(path: Path, pixels: np.ndarray[Any, Any] = GREY, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def _message(source: object, split: Any = "all") -> str:
    with pytest.raises(DataError) as caught:
        load(str(source), split=split)
    return str(caught.value)


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    """Classes 0, 2 and 10 of a data set, as a device has them that holds no others."""
    folder = tmp_path / "signs"
    for label, name, shift in ((10, "a.png", 9), (2, "b.png", 2), (0, "c.png", 0), (2, "a.bmp", 1)):
        _image(folder / str(label) / name, GREY + np.uint8(shift))
    return folder


def test_a_folders_number_is_its_label_whichever_others_are_there(digits: Path) -> None:
    read = load(str(digits), split="all")
    assert (read.name, read.shape, read.x.dtype, read.classes) == ("signs", (1, 2, 3), np.uint8, 11)
    assert read.y.tolist() == [0, 2, 2, 10]
    assert read.x[:, 0, 0, 0].tolist() == [0, 1, 2, 9]
    assert np.array_equal(read.x[0, 0], GREY)


def test_colours_are_the_first_axis(tmp_path: Path) -> None:
    _image(tmp_path / "0" / "a.png", COLOR)
    read = load(f"signs={tmp_path}", split="all")
    assert (read.name, read.shape) == ("signs", (3, 2, 3))
    assert np.array_equal(read.x[0], COLOR.transpose(2, 0, 1))


@pytest.mark.parametrize("name", ["a.jpg", "a.JPEG", "a.bmp", "a.png"])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_png_jpeg_and_bmp_are_read_in_grey_and_in_colour(tmp_path: Path, name: str, mode: str) -> None:
    flat = np.full((8, 8) if mode == "L" else (8, 8, 3), 77, np.uint8)
    _image(tmp_path / "1" / name, flat)
    read = load(str(tmp_path), split="all")
    assert read.shape == (1 if mode == "L" else 3, 8, 8)
    assert abs(read.x.astype(int) - 77).max() <= 1  # JPEG rounds


def test_names_get_their_labels_from_the_list_of_classes(tmp_path: Path) -> None:
    for name in ("cat", "ant"):
        _image(tmp_path / name / "a.png")
    (tmp_path / "classes.txt").write_text("dog\nant\n\ncat \nfox\n")
    read = load(str(tmp_path), split="all")
    assert (read.y.tolist(), read.classes) == ([1, 2], 4)


def test_train_and_test_folders_are_the_splits_and_share_the_classes(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("no\nyes\n")
    for split, name in (("train", "yes"), ("train", "no"), ("test", "yes")):
        _image(tmp_path / split / name / "a.png")
    assert load(str(tmp_path), split="train").y.tolist() == [0, 1]
    assert load(str(tmp_path), split="test").y.tolist() == [1]
    assert load(str(tmp_path), split="all").y.tolist() == [0, 1, 1]


def test_without_them_one_fifth_of_every_class_is_held_out(tmp_path: Path) -> None:
    for number in range(20):
        _image(tmp_path / str(number % 2) / f"{number}.png", GREY + np.uint8(number))
    train, test = load(str(tmp_path), split="train"), load(str(tmp_path), split="test")
    assert (np.bincount(train.y).tolist(), np.bincount(test.y).tolist()) == ([8, 8], [2, 2])
    seen = [*train.x[:, 0, 0, 0], *test.x[:, 0, 0, 0]]
    assert sorted(seen) == list(range(20))


def test_a_split_without_its_folder_is_said(tmp_path: Path) -> None:
    _image(tmp_path / "train" / "0" / "a.png")
    assert "has no test samples (x_test and y_test, t10k-* or test/)" in _message(tmp_path, "test")


def test_what_file_managers_leave_is_passed_over(digits: Path) -> None:
    (digits / ".DS_Store").write_bytes(b"x")
    (digits / "0" / ".DS_Store").write_bytes(b"x")
    (digits / ".thumbnails").mkdir()
    assert len(load(str(digits), split="all")) == 4


def test_names_without_a_list_are_refused(tmp_path: Path) -> None:
    for name in ("cat", "00", "1"):
        _image(tmp_path / name / "a.png")
    assert _message(tmp_path) == (
        f"data set '{tmp_path}': folders are named '00', 'cat', which does not say their labels "
        "(rename them to 0, 1, ..., or list them in classes.txt, on every device alike)"
    )


def test_a_name_that_the_list_lacks_is_refused(tmp_path: Path) -> None:
    _image(tmp_path / "cat" / "a.png")
    (tmp_path / "classes.txt").write_text("dog\nant\n")
    due = "folders 'cat' are not in classes.txt, which names 'dog', 'ant'"
    assert _message(tmp_path) == f"data set '{tmp_path}': {due}"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"cat\ndog\ncat\n", "names 'cat' more than once; one class a line is due, each once"),
        (b"\n \n", "has 3 bytes; one class a line is due, each once"),
        (b"\xff\xfe", "is not UTF-8: "),
    ],
)
def test_a_list_that_is_none_is_refused(tmp_path: Path, content: bytes, problem: str) -> None:
    _image(tmp_path / "cat" / "a.png")
    (tmp_path / "classes.txt").write_bytes(content)
    assert _message(tmp_path).startswith(f"data set '{tmp_path / 'classes.txt'}': {problem}")


def test_splits_and_classes_side_by_side_are_refused(tmp_path: Path) -> None:
    for name in ("train/0", "test/0", "3"):
        _image(tmp_path / name / "a.png")
    due = "holds train, test and also '3'; train and test alone are due"
    assert _message(tmp_path) == f"data set '{tmp_path}': {due}"


@pytest.mark.parametrize("folder", ["0", "train/0"])
def test_folders_without_images_are_refused(tmp_path: Path, folder: str) -> None:
    (tmp_path / folder).mkdir(parents=True)
    where = tmp_path / "train" if "train" in folder else tmp_path
    assert _message(tmp_path) == f"data set '{where}': holds no images (.png, .jpg, .jpeg, .bmp)"


@pytest.mark.parametrize("name", ["notes.txt", "a.gif", "more"])
def test_what_is_no_image_is_named(digits: Path, name: str) -> None:
    (digits / "2" / name).mkdir() if name == "more" else (digits / "2" / name).write_bytes(b"x")
    due = f"'{name}' is not one of .png, .jpg, .jpeg, .bmp; convert, move or remove it"
    assert _message(digits) == f"data set '{digits / '2'}': {due}"


@pytest.mark.parametrize(
    ("pixels", "came"),
    [
        (GREY.T, "2×3 grey"),
        (COLOR, "3×2 RGB"),
    ],
)
def test_an_image_unlike_the_first_is_named_and_not_resized(
    digits: Path, pixels: np.ndarray[Any, Any], came: str
) -> None:
    _image(digits / "2" / "z.png", np.ascontiguousarray(pixels))
    assert _message(digits) == (
        f"data set '{digits}': 2/z.png: is {came}, 3×2 grey is due, as 0/c.png is "
        "(make all images alike, on every device)"
    )


@pytest.mark.parametrize("mode", ["RGBA", "P", "1", "LA", "I;16"])
def test_an_image_of_another_mode_is_named_and_not_converted(digits: Path, mode: str) -> None:
    Image.new(mode, (3, 2)).save(digits / "2" / "z.png")
    assert _message(digits) == (
        f"data set '{digits}': 2/z.png: has Pillow's mode '{mode}', 'L' (grey) or 'RGB', 8 bits a channel, "
        "is due (convert it, on every device alike)"
    )


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp"])
def test_broken_images_are_named(digits: Path, suffix: str) -> None:
    whole = _image(digits / "2" / f"whole{suffix}", np.tile(GREY, (20, 20)))
    cut = whole.read_bytes()[: whole.stat().st_size // 2]
    whole.unlink()
    (digits / "2" / f"cut{suffix}").write_bytes(cut)
    (digits / "2" / f"text{suffix}").write_bytes(b"no image")
    with pytest.raises(DataError) as caught:
        load(str(digits), split="all")
    assert [fault.field for fault in caught.value.faults] == [f"2/cut{suffix}", f"2/text{suffix}"]
    assert all(fault.problem.startswith(BROKEN) for fault in caught.value.faults)
    assert caught.value.faults[0].remedy == "replace or remove it"


def test_a_gif_under_another_name_is_not_read(digits: Path) -> None:
    Image.fromarray(GREY).save(digits / "2" / "z.png", format="GIF")
    assert f"2/z.png: {BROKEN}" in _message(digits)


def test_ten_broken_images_are_enough(digits: Path) -> None:
    for number in range(30):
        (digits / "2" / f"x{number:02}.png").write_bytes(b"no image")
    with pytest.raises(DataError) as caught:
        load(str(digits), split="all")
    assert len(caught.value.faults) == 11
    assert str(caught.value.faults[-1]) == "the rest of the images were not looked at"


def _bomb(width: int, height: int) -> bytes:
    """A PNG whose header claims a size, with a few bytes of pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    pixels = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("size", "problem"),
    [
        ((4097, 4096), "has 4097×4096 pixels, the limit is 16777216"),
        ((100_000, 100_000), f"{BROKEN}Image size (10000000000 pixels) exceeds limit"),
    ],
)
def test_a_decompression_bomb_is_refused_by_its_header(
    digits: Path, size: tuple[int, int], problem: str
) -> None:
    (digits / "0" / "a.png").write_bytes(_bomb(*size))
    assert f"0/a.png: {problem}" in _message(digits)


def test_all_images_together_have_a_limit(digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_BYTES", 23)
    assert _message(digits) == f"data set '{digits}': 4 images would take 24 bytes, the limit is 23"


def test_without_pillow_the_extra_is_named(digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingExtra) as caught:
        load(str(digits), split="all")
    assert str(caught.value) == "pillow is not installed: pip install 'trellis-fl[images]'"


def _intact() -> dict[str, bytes]:
    found = {}
    for kind in ("PNG", "JPEG", "BMP"):
        content = io.BytesIO()
        Image.fromarray(np.tile(GREY, (4, 4))).save(content, format=kind)
        found[kind] = content.getvalue()
    return found


_INTACT = _intact()


@settings(max_examples=400, deadline=None)
@given(
    kind=st.sampled_from(sorted(_INTACT)),
    edits=st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), min_size=1, max_size=4),
    cut=st.one_of(st.none(), st.integers(0, 2000)),
)
def test_a_damaged_image_is_read_or_refused_and_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, kind: str, edits: list[tuple[int, int]], cut: int | None
) -> None:
    content = bytearray(_INTACT[kind])
    for position, byte in edits:
        content[position % len(content)] = byte
    folder = tmp_path_factory.getbasetemp() / "damaged"
    (folder / "0").mkdir(parents=True, exist_ok=True)
    (folder / "0" / "a.png").write_bytes(content[:cut])
    with contextlib.suppress(DataError):
        load(str(folder), split="all")
