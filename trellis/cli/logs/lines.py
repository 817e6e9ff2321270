"""Log lines as the command shows them: for people with tracebacks indented, for machines as JSON."""

from __future__ import annotations

import datetime as dt
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Self

import click

from trellis.foreign_text import harmless, harmless_line, json_text

_INDENT = "    "
_COLOURS = {"DEBUG": "bright_black", "WARNING": "yellow", "ERROR": "red", "CRITICAL": "red"}


class Level(StrEnum):
    """How serious a line is."""

    DEBUG = "DEBUG"
    INFO = "INFO"
    WARNING = "WARNING"
    ERROR = "ERROR"
    CRITICAL = "CRITICAL"

    def at_least(self, other: Level) -> bool:
        """Whether this is as serious as `other`, or more."""
        numbers = logging.getLevelNamesMapping()
        return numbers[self] >= numbers[other]


@dataclass(frozen=True)
class Line:
    """One line about a task.

    Attributes:
        ts: When it was said, ms by its source's clock.
        source: `device`, `gateway` or `server`.
        region: None for the server's own.
        device: None for the server's and a gateway's.
    """

    ts: int
    source: str
    region: str | None
    device: str | None
    level: Level
    logger: str
    message: str

    @classmethod
    def from_json(cls, line: Mapping[str, Any]) -> Self:
        """Return a line as the server answers it."""
        return cls(
            ts=int(line["ts"]),
            source=str(line["source"]),
            region=line.get("region"),
            device=line.get("device"),
            level=Level(line["level"]),
            logger=str(line["logger"]),
            message=str(line["message"]),
        )

    def to_json(self) -> str:
        """Return it as one line of JSON."""
        return json_text(asdict(self))

    @property
    def speaker(self) -> str:
        """Who said it."""
        if self.source == "device":
            return f"{self.region}/{self.device}"
        return f"{self.source} {self.region}" if self.region else self.source


def rendered(line: Line, *, colours: bool) -> str:
    """Return time, speaker, level and message; what follows the first line is indented."""
    first, *more = harmless(line.message).splitlines() or [""]
    level = f"{line.level:<8}"
    if colours:
        level = click.style(level, fg=_COLOURS.get(line.level), bold=line.level is Level.CRITICAL or None)
    head = f"{_moment(line.ts)}  {harmless_line(line.speaker):<16}  {level}  {first}"
    return "\n".join([head.rstrip(), *(f"{_INDENT}{part}" for part in more)])


def _moment(ts: int) -> str:
    try:
        return f"{dt.datetime.fromtimestamp(ts / 1000):%Y-%m-%d %H:%M:%S}.{ts % 1000:03}"
    except (ValueError, OverflowError, OSError):
        return f"{ts} ms"  # a server that is older, or no friend, has kept what no calendar has
