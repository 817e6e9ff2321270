"""The finished rounds of a task, one JSON line each."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from pydantic import ValidationError

from trellis.files import append_line
from trellis.flower.backchannel import RoundRecord

logger = logging.getLogger(__name__)

_CHUNK_BYTES = 65_536


def append_round(path: Path, record: RoundRecord) -> None:
    """Append one finished round; on return it survives a crash."""
    append_line(path, record.model_dump_json().encode())


def read_rounds(path: Path) -> list[RoundRecord]:
    """Return the rounds in order, of one that was done again the last; a torn line is left out."""
    return rounds_in(read_content(path), path)


def read_content(path: Path) -> bytes:
    """Return what stands in the file, nothing while it is not there."""
    return path.read_bytes() if path.is_file() else b""


def rounds_in(content: bytes, path: Path, done: int | None = None) -> list[RoundRecord]:
    """Return the rounds in what was read from `path`, as `read_rounds` does; with `done` those up to it."""
    found = (_parse(line, path) for line in content.split(b"\n"))
    rounds = {record.round: record for record in found if record}  # a resumed run does its last round again
    return [rounds[number] for number in sorted(rounds) if done is None or number <= done]


def read_last_round(path: Path, done: int) -> RoundRecord | None:
    """Return the last of the rounds up to `done`, None if there is none; those before it stay unread."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        records = (_parse(line, path) for line in _lines_from_end(file))
        return next((record for record in records if record and record.round <= done), None)


def _lines_from_end(file: BinaryIO) -> Iterator[bytes]:
    begun, left = b"", file.seek(0, os.SEEK_END)
    while left:
        size = min(_CHUNK_BYTES, left)
        left = file.seek(left - size)
        begun, *whole = (file.read(size) + begun).split(b"\n")
        yield from reversed(whole)
    yield begun


def _parse(line: bytes, path: Path) -> RoundRecord | None:
    try:
        return RoundRecord.model_validate_json(line) if line else None
    except ValidationError:
        logger.warning("%s: a line of %d bytes is torn and left out", path, len(line))
        return None
