"""A FlatBuffer's numbers, offsets and vectors, each to its last byte and not beyond."""

from __future__ import annotations

import struct
from collections.abc import Callable

import flatbuffers
import pytest

from models.exported.flatbuffer import FlatFile, Table, element
from models.exported.graph_file import MalformedFile


def table(text: str | bytes = "größe") -> Table:
    """Return a table of -5, a text, nothing, and a vector of three numbers."""
    builder = flatbuffers.Builder(0)
    told = builder.CreateString(text)
    builder.StartVector(4, 3, 4)
    for number in (3, -2, 1):
        builder.PrependInt32(number)
    numbers = builder.EndVector()
    builder.StartObject(4)
    builder.PrependInt32Slot(0, -5, 0)
    builder.PrependUOffsetTRelativeSlot(1, told, 0)
    builder.PrependUOffsetTRelativeSlot(3, numbers, 0)
    builder.Finish(builder.EndObject(), file_identifier=b"TEST")
    return FlatFile(bytes(builder.Output())).root(b"TEST")


def test_a_table_gives_its_fields() -> None:
    found = table()
    assert (found.number(0, "i"), found.text(1), found.content(1)) == (-5, "größe", "größe".encode())
    assert (found.numbers(3), found.length(3), found.length(1)) == ((1, -2, 3), 3, 7)


@pytest.mark.parametrize("field", [2, 4, 40])
def test_what_a_table_leaves_out_is_its_default(field: int) -> None:
    found = table()
    assert (found.number(field, "i"), found.number(field, "i", 7)) == (0, 7)
    assert (found.text(field), found.content(field), found.length(field)) == ("", b"", 0)
    assert (found.numbers(field), found.tables(field)) == ((), [])


def test_a_text_that_is_none_is_named() -> None:
    with pytest.raises(MalformedFile, match=r"field 1 of the table at byte \d+ is no UTF-8 text"):
        table(b"\xff\xfe").text(1)


def test_a_file_of_another_kind_is_refused() -> None:
    with pytest.raises(MalformedFile, match="does not begin as a file of kind TEST"):
        FlatFile(struct.pack("<I4s", 8, b"TES2") + bytes(16)).root(b"TEST")


FILE = struct.pack("<IIII", 12, 0, 2, 4)

INSIDE: list[tuple[Callable[[FlatFile], object], object]] = [
    (lambda file: file.number("I", 12), 4),
    (lambda file: file.number("B", 15), 0),
    (lambda file: file.follow(0), 12),
    (lambda file: file.vector(8, 2), range(12, 16, 2)),
    (lambda file: file.vector(4, 4), range(8, 8, 4)),
    (lambda file: file.piece(12, 16), b"\4\0\0\0"),
]
OUTSIDE: list[tuple[Callable[[FlatFile], object], str]] = [
    (lambda file: file.number("I", 13), "a number at byte 13 is outside of the file"),
    (lambda file: file.number("B", 16), "a number at byte 16 is outside of the file"),
    (lambda file: file.number("I", -4), "a number at byte -4 is outside of the file"),
    (lambda file: file.number("B", -1), "a number at byte -1 is outside of the file"),
    (lambda file: file.follow(12), "the offset at byte 12 leads out of the file"),
    (lambda file: file.follow(4), "the offset at byte 4 leads out of the file"),
    (lambda file: file.vector(8, 3), "the vector at byte 8 ends beyond the end"),
    (lambda file: file.vector(12, 1), "the vector at byte 12 ends beyond the end"),
]


@pytest.mark.parametrize(("read", "due"), INSIDE)
def test_what_ends_with_the_file_is_read(read: Callable[[FlatFile], object], due: object) -> None:
    assert read(FlatFile(FILE)) == due


@pytest.mark.parametrize(("read", "problem"), OUTSIDE)
def test_what_ends_beyond_it_is_not(read: Callable[[FlatFile], object], problem: str) -> None:
    with pytest.raises(MalformedFile, match=problem):
        read(FlatFile(FILE))


def test_no_more_is_read_than_the_limit() -> None:
    file = FlatFile(FILE, reads=2)
    assert [file.number("I", 0) for _ in range(2)] == [12, 12]
    with pytest.raises(MalformedFile, match="more parts than any model needs"):
        file.number("I", 0)


def test_four_times_its_size_is_read_of_a_file_and_no_more() -> None:
    file = FlatFile(FILE)
    for _ in range(4):
        file.piece(0, 16)
    with pytest.raises(MalformedFile, match="share what they hold more often"):
        file.piece(15, 16)


@pytest.mark.parametrize("index", [-1, 2])
def test_an_element_that_is_not_there_is_named(index: int) -> None:
    assert [element(["a", "b"], at, "letter") for at in (0, 1)] == ["a", "b"]
    with pytest.raises(MalformedFile, match=f"letter {index} is named, there are 2"):
        element(["a", "b"], index, "letter")
