"""Tables of a FlatBuffer, read with limits: https://flatbuffers.dev/internals/.

Every offset is followed only to where it stays inside the file. Offsets lead forward from where they stand,
and a schema is as deep as the code that reads it, so that no file can lead in a circle.
"""

from __future__ import annotations

import struct
from typing import TypeVar

from models.exported.graph_file import MalformedFile

MAX_READS = 1_000_000
"""Done in seconds; LeNet's training graph takes 10,000."""

COPIES = 4
"""How many times its own size a file may have read as text and content: tables may share what they hold."""

Read = TypeVar("Read")


class FlatFile:
    """The bytes of a file, read one number at a time."""

    def __init__(self, content: bytes, *, reads: int = MAX_READS) -> None:
        self._content = memoryview(content)
        self._left = reads
        self._bytes_left = COPIES * len(content)

    def root(self, identifier: bytes) -> Table:
        """Return the root table of a file with that identifier of four bytes."""
        if bytes(self._content[4:8]) != identifier:
            raise MalformedFile(f"it does not begin as a file of kind {identifier.decode()}")
        return Table(self, self.follow(0))

    def number(self, kind: str, at: int) -> int:
        """Return the little-endian integer at `at`; `kind` is its letter in `struct`."""
        self._left -= 1
        if self._left < 0:
            raise MalformedFile("it has more parts than any model needs")
        if at < 0 or at + struct.calcsize(kind) > len(self._content):
            raise MalformedFile(f"a number at byte {at} is outside of the file: cut short?")
        value: int = struct.unpack_from(f"<{kind}", self._content, at)[0]
        return value

    def follow(self, at: int) -> int:
        """Return where the offset at `at` leads."""
        to = at + self.number("I", at)
        if to == at or to >= len(self._content):
            raise MalformedFile(f"the offset at byte {at} leads out of the file: cut short?")
        return to

    def vector(self, at: int, size: int) -> range:
        """Return where the elements, of `size` bytes each, of the vector at `at` stand."""
        length = self.number("I", at)
        first = at + 4
        if first + length * size > len(self._content):
            raise MalformedFile(f"the vector at byte {at} ends beyond the end: cut short?")
        return range(first, first + length * size, size)

    def piece(self, start: int, end: int) -> bytes:
        """Return the bytes from `start` to below `end`, which a vector's range holds."""
        self._bytes_left -= end - start
        if self._bytes_left < 0:
            raise MalformedFile("its parts share what they hold more often than any model's")
        return bytes(self._content[start:end])


class Table:
    """One table; a field is named by its index in the schema, and may be left out."""

    def __init__(self, file: FlatFile, at: int) -> None:
        self._file = file
        self._at = at
        self._fields = at - file.number("i", at)
        self._size = file.number("H", self._fields)

    def number(self, field: int, kind: str, default: int = 0) -> int:
        """Return an integer, or its default where it is left out."""
        at = self._field(field)
        return default if at is None else self._file.number(kind, at)

    def text(self, field: int) -> str:
        """Return a text, `""` where it is left out."""
        try:
            return self.content(field).decode()
        except UnicodeDecodeError:
            raise MalformedFile(f"field {field} of the table at byte {self._at} is no UTF-8 text") from None

    def content(self, field: int) -> bytes:
        """Return a vector of bytes, empty where it is left out."""
        found = self._vector(field, 1)
        return self._file.piece(found.start, found.stop)

    def length(self, field: int) -> int:
        """Return how many elements a vector has, whatever they are."""
        return len(self._vector(field, 1))

    def numbers(self, field: int) -> tuple[int, ...]:
        """Return a vector of int32."""
        return tuple(self._file.number("i", at) for at in self._vector(field, 4))

    def tables(self, field: int) -> list[Table]:
        """Return a vector of tables."""
        return [Table(self._file, self._file.follow(at)) for at in self._vector(field, 4)]

    def _vector(self, field: int, size: int) -> range:
        at = self._field(field)
        return range(0) if at is None else self._file.vector(self._file.follow(at), size)

    def _field(self, field: int) -> int | None:
        """Return where a field stands, None where it is left out."""
        entry = 4 + 2 * field
        if entry + 2 > self._size:
            return None
        offset = self._file.number("H", self._fields + entry)
        return self._at + offset if offset else None


def element(found: list[Read], index: int, what: str) -> Read:
    """Return the element of that index.

    Raises:
        MalformedFile: There is none.
    """
    if not 0 <= index < len(found):
        raise MalformedFile(f"{what} {index} is named, there are {len(found)}")
    return found[index]
