"""Protobuf's wire format, read with limits: https://protobuf.dev/programming-guides/encoding/.

Only what says where fields begin and end; what they mean stands with whoever asks. Devices have no `onnx`
package, and this reader believes nothing: a length beyond the end, a tag of no known kind, and a file of more
fields than the limit are each the end of it.
"""

from __future__ import annotations

from models.exported.graph_file import MalformedFile

MAX_FIELDS = 500_000
"""Walked in seconds; LeNet's training graph has 5,000."""
MAX_DEPTH = 64

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MAX_VARINT_BYTES = 10


class Budget:
    """How many fields may still be read of one file."""

    def __init__(self, fields: int = MAX_FIELDS) -> None:
        self._left = fields

    def spend(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise MalformedFile("it has more fields than any model needs")


class Message:
    """One message: its fields by number, in the order in which they came.

    Raises:
        MalformedFile: The bytes are no message.
    """

    def __init__(self, content: memoryview, budget: Budget, *, depth: int = 0) -> None:
        if depth > MAX_DEPTH:
            raise MalformedFile(f"it is nested deeper than {MAX_DEPTH} messages")
        self._budget = budget
        self._depth = depth
        self._fields: dict[int, list[int | memoryview]] = {}
        at = 0
        while at < len(content):
            budget.spend()
            at = self._read_field(content, at)

    def messages(self, number: int) -> list[Message]:
        """Return the messages in a repeated field."""
        return [Message(part, self._budget, depth=self._depth + 1) for part in self._parts(number)]

    def message(self, number: int) -> Message | None:
        """Return the message in a field that stands at most once."""
        found = self.messages(number)
        if len(found) > 1:
            # Libraries would merge the two, or take the last: what we checked would not be what is run.
            raise MalformedFile(f"field {number} stands {len(found)} times, at most once is due")
        return found[0] if found else None

    def content(self, number: int) -> bytes | None:
        """Return the bytes in a field that stands at most once."""
        found = self._parts(number)
        if len(found) > 1:
            raise MalformedFile(f"field {number} stands {len(found)} times, at most once is due")
        return bytes(found[0]) if found else None

    def text(self, number: int) -> str:
        """Return the text in a field that stands at most once; `""` where it is left out."""
        try:
            return (self.content(number) or b"").decode()
        except UnicodeDecodeError:
            raise MalformedFile(f"field {number} is no UTF-8 text") from None

    def number(self, number: int) -> int | None:
        """Return the integer in a field that stands at most once, as an unsigned one of 64 bits."""
        found = self._fields.get(number, [])
        if len(found) > 1:
            raise MalformedFile(f"field {number} stands {len(found)} times, at most once is due")
        if not found:
            return None
        if not isinstance(found[0], int):
            raise MalformedFile(f"field {number} is of bytes, a number is due")
        return found[0]

    def __contains__(self, number: int) -> bool:
        return number in self._fields

    def _parts(self, number: int) -> list[memoryview]:
        found = self._fields.get(number, [])
        parts = [part for part in found if isinstance(part, memoryview)]
        if len(parts) < len(found):
            raise MalformedFile(f"field {number} is a number, bytes are due")
        return parts

    def _read_field(self, content: memoryview, at: int) -> int:
        """Keep the field that begins at `at`; return where the next one begins."""
        tag, at = _varint(content, at)
        number, kind = tag >> 3, tag & 7
        if not 1 <= number < 2**29:
            raise MalformedFile(f"a field has the number {number}")
        if kind == _VARINT:
            value, at = _varint(content, at)
            self._fields.setdefault(number, []).append(value)
            return at
        if kind == _BYTES:
            length, at = _varint(content, at)
        elif kind in (_FIXED32, _FIXED64):
            length = 4 if kind == _FIXED32 else 8
        else:
            raise MalformedFile(f"field {number} is of kind {kind}, which is not in use")
        end = at + length
        if end > len(content):
            raise MalformedFile(f"field {number} ends {end - len(content)} bytes beyond the end: cut short?")
        self._fields.setdefault(number, []).append(content[at:end])
        return end


def _varint(content: memoryview, at: int) -> tuple[int, int]:
    """Return the number that begins at `at`, of 64 bits, and where it ends."""
    value = 0
    for index in range(_MAX_VARINT_BYTES):
        if at + index >= len(content):
            raise MalformedFile("a number ends beyond the end: cut short?")
        byte = content[at + index]
        value |= (byte & 0x7F) << (7 * index)
        if not byte & 0x80:
            return value & (2**64 - 1), at + index + 1
    raise MalformedFile(f"a number is longer than {_MAX_VARINT_BYTES} bytes")
