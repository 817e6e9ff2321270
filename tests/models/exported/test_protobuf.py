"""Protobuf's wire format: each kind of field, and each limit at its last and at the next."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from models.exported.graph_file import MalformedFile
from models.exported.protobuf import Budget, Message


def message(content: bytes, fields: int = 100) -> Message:
    return Message(memoryview(content), Budget(fields))


@pytest.mark.parametrize(
    ("content", "due"),
    [
        (b"\x08\x00", 0),
        (b"\x08\x7f", 127),
        (b"\x08\x80\x01", 128),
        (b"\x08" + b"\xff" * 9 + b"\x01", 2**64 - 1),
        # The tenth byte has room for 70 bits, of which six are dropped, as protobuf's own readers do.
        (b"\x08" + b"\x80" * 9 + b"\x7f", 2**63),
    ],
)
def test_a_number_has_64_bits(content: bytes, due: int) -> None:
    assert message(content).number(1) == due


def test_what_is_left_out_is_nothing() -> None:
    empty = message(b"")
    assert (empty.number(1), empty.content(1), empty.text(1)) == (None, None, "")
    assert (empty.message(1), empty.messages(1), 1 in empty) == (None, [], False)


def test_fields_of_fixed_size_and_of_bytes_end_where_they_should() -> None:
    found = message(b"\x09" + b"\1" * 8 + b"\x15" + b"\2" * 4 + b"\x1a\x03abc" + b"\x1a\x00")
    assert (found.content(1), found.content(2)) == (b"\1" * 8, b"\2" * 4)
    assert len(found.messages(4)) == 0
    with pytest.raises(MalformedFile, match="field 3 stands 2 times, at most once is due"):
        found.content(3)


@pytest.mark.parametrize("kind", [b"\x09" + b"\1" * 7, b"\x0d" + b"\1" * 3, b"\x0a\x03ab"])
def test_a_field_cut_short_by_a_byte_is_refused(kind: bytes) -> None:
    with pytest.raises(MalformedFile, match="field 1 ends 1 bytes beyond the end: cut short"):
        message(kind)


@pytest.mark.parametrize("content", [b"\x80", b"\x08", b"\x08\x80\x80"])
def test_a_number_cut_short_is_refused(content: bytes) -> None:
    with pytest.raises(MalformedFile, match="a number ends beyond the end: cut short"):
        message(content)


READS: list[tuple[bytes, Callable[[Message], object], str]] = [
    (b"\x08\x01\x08\x01", lambda found: found.number(1), "field 1 stands 2 times, at most once is due"),
    (b"\x0a\x00\x0a\x00", lambda found: found.message(1), "field 1 stands 2 times, at most once is due"),
    (b"\x0a\x00", lambda found: found.number(1), "field 1 is of bytes, a number is due"),
    (b"\x08\x01", lambda found: found.content(1), "field 1 is a number, bytes are due"),
    (b"\x0a\x00\x08\x01", lambda found: found.messages(1), "field 1 is a number, bytes are due"),
]


@pytest.mark.parametrize(("content", "read", "problem"), READS)
def test_a_field_of_another_kind_or_number_than_due_is_named(
    content: bytes, read: Callable[[Message], object], problem: str
) -> None:
    with pytest.raises(MalformedFile, match=problem):
        read(message(content))


def test_field_numbers_have_29_bits() -> None:
    assert 2**29 - 1 in message(b"\xf8\xff\xff\xff\x0f\x00")
    with pytest.raises(MalformedFile, match="a field has the number 536870912"):
        message(b"\x80\x80\x80\x80\x10\x00")


def test_no_more_fields_are_read_than_the_limit_whatever_they_stand_in() -> None:
    # One field of two: three in all.
    content = b"\x0a\x04\x08\x01\x08\x01"
    assert len(message(content, fields=3).messages(1)) == 1
    with pytest.raises(MalformedFile, match="more fields than any model needs"):
        message(content, fields=2).messages(1)


def test_messages_lie_64_deep_in_each_other_and_no_deeper() -> None:
    content = b""
    for _ in range(65):
        size = bytes([len(content)]) if len(content) < 128 else bytes([len(content) & 127 | 128, 1])
        content = b"\x0a" + size + content
    found = message(content)
    for _ in range(64):
        (found,) = found.messages(1)
    with pytest.raises(MalformedFile, match="deeper than 64 messages"):
        found.messages(1)
