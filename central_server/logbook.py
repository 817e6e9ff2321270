"""A task's log lines on disk: `log.jsonl` is the service's, `app-log.jsonl` its ServerApp's.

One process writes each. A full file is renamed to `….1` over the one before, so that a task keeps at most two
of each. Reading goes backwards from the end and takes no lock: a rename meanwhile loses nothing newer.
"""

from __future__ import annotations

import heapq
import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice
from pathlib import Path
from typing import BinaryIO, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from trellis.payloads import Count, Text, now_ms
from trellis.task_log import LineHandler, text_of

LOG, APP_LOG = "log.jsonl", "app-log.jsonl"
MAX_FILE_BYTES = 16 * 1024 * 1024
MAX_MESSAGE_CHARS = 16_000
_BLOCK_BYTES = 64 * 1024
_MAX_LINE_BYTES = 512 * 1024
"""A line of MAX_MESSAGE_CHARS has less, whatever the characters; what has more is torn or foreign."""

Level = Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"]


class Source(StrEnum):
    """Who said a line."""

    DEVICE = "device"
    GATEWAY = "gateway"
    SERVER = "server"


class LogLine(BaseModel):
    """One line about a task.

    Attributes:
        ts: When it was said, ms by its source's clock.
        stored: When it was written here, ms by the server's clock; it grows along a file.
        region: None for the server's own.
        device: None for the server's and a gateway's.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    ts: Count
    stored: Count = 0
    source: Source
    region: str | None = None
    device: str | None = None
    level: Level
    logger: Text
    message: Text


@dataclass(frozen=True)
class Wanted:
    """Which lines are asked for.

    Attributes:
        level: This level and those above.
        after: Only what was stored later than this, in ms by the server's clock.
    """

    device: str | None = None
    region: str | None = None
    level: Level = "DEBUG"
    after: int = 0

    def includes(self, line: LogLine) -> bool:
        """Whether `line` is one of them; `after` is not asked."""
        return (
            self.device in (None, line.device)
            and self.region in (None, line.region)
            and _severity(line.level) >= _severity(self.level)
        )


class Logbook:
    """Appends to one file, of bounded size; one process at a time, one thread at a time."""

    def __init__(self, path: Path, *, max_bytes: int = MAX_FILE_BYTES) -> None:
        self._path, self._max_bytes = path, max_bytes
        self._last = 0

    def append(self, lines: Iterable[LogLine]) -> None:
        """Write `lines` behind what is there.

        Raises:
            OSError: They cannot be written.
        """
        # Never backwards, even if the clock is: a reader stops at the first line that is not later.
        self._last = max(self._last, now_ms())
        text = b"".join(
            line.model_copy(update={"stored": self._last}).model_dump_json(exclude_none=True).encode() + b"\n"
            for line in lines
        )
        if _size(self._path) + len(text) > self._max_bytes:
            self._turn()
        with self._path.open("ab+") as file:
            end = file.tell()
            if end and os.pread(file.fileno(), 1, end - 1) != b"\n":
                text = b"\n" + text  # a kill tore the line before
            file.write(text)

    def _turn(self) -> None:
        if self._path.exists():
            self._path.replace(_elder(self._path))


class BookHandler(LineHandler):
    """Keeps what is logged in this process as the server's lines about one task."""

    def __init__(self, book: Logbook) -> None:
        super().__init__()
        self._book = book

    def hand_on(self, record: logging.LogRecord) -> None:
        """Write `record` into the book."""
        self._book.append([line_of(record)])


def line_of(record: logging.LogRecord) -> LogLine:
    """Return a record of the server's own as a line, with its traceback."""
    return LogLine(
        ts=int(record.created * 1000),
        source=Source.SERVER,
        level=_level(record.levelno),
        logger=record.name,
        message=shortened(text_of(record)),
    )


def shortened(message: str) -> str:
    """Return a message within its bound; the end is kept, since a traceback's last line is the error."""
    if len(message) <= MAX_MESSAGE_CHARS:
        return message
    half = MAX_MESSAGE_CHARS // 2
    return f"{message[:half]}\n…\n{message[-half:]}"


def newest(folder: Path, wanted: Wanted, limit: int) -> list[LogLine]:
    """Return at most `limit` of the task's lines, those stored last, in the order of their `ts`."""
    # Each file is in the order of storing, so the newest of all are found from both ends at once.
    files = [_backwards(folder / name, wanted.after) for name in (LOG, APP_LOG)]
    merged = heapq.merge(*files, key=lambda line: line.stored, reverse=True)
    found = list(islice((line for line in merged if wanted.includes(line)), limit))
    found.reverse()
    found.sort(key=lambda line: line.ts)
    return found


def _backwards(path: Path, after: int) -> Iterator[LogLine]:
    with ExitStack() as stack:
        files = []
        # In this order: if the file is renamed between the two, it is opened twice, and read once.
        for one in (path, _elder(path)):
            try:
                files.append(stack.enter_context(one.open("rb")))
            except FileNotFoundError:
                continue
        if len(files) == 2 and os.path.sameopenfile(files[0].fileno(), files[1].fileno()):
            files.pop()
        for file in files:
            for text in _lines_backwards(file):
                try:
                    line = LogLine.model_validate_json(text)
                except ValidationError:
                    continue  # torn by a kill
                if line.stored <= after:
                    return
                yield line


def _lines_backwards(file: BinaryIO) -> Iterator[bytes]:
    position, rest = file.seek(0, os.SEEK_END), b""
    while position > 0:
        size = min(_BLOCK_BYTES, position)
        position -= size
        file.seek(position)
        first, *lines = (file.read(size) + rest).split(b"\n")
        yield from (line for line in reversed(lines) if line)
        rest = first if len(first) <= _MAX_LINE_BYTES else b""
    if rest:
        yield rest


def _elder(path: Path) -> Path:
    return path.with_name(f"{path.name}.1")


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _severity(level: Level) -> int:
    return logging.getLevelNamesMapping()[level]


def _level(number: int) -> Level:
    for level in ("CRITICAL", "ERROR", "WARNING", "INFO"):
        if number >= logging.getLevelNamesMapping()[level]:
            return level
    return "DEBUG"
