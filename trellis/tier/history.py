"""The finished rounds of a task, one JSON line each."""

from __future__ import annotations

import logging
from pathlib import Path

from pydantic import ValidationError

from trellis.files import append_line
from trellis.flower.backchannel import RoundRecord

logger = logging.getLogger(__name__)


def append_round(path: Path, record: RoundRecord) -> None:
    """Append one finished round; on return it survives a crash."""
    append_line(path, record.model_dump_json().encode())


def read_rounds(path: Path) -> list[RoundRecord]:
    """Return the rounds in order, of one that was done again the last; a torn line is left out."""
    if not path.is_file():
        return []
    rounds: dict[int, RoundRecord] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        if not line:
            continue
        try:
            record = RoundRecord.model_validate_json(line)
        except ValidationError:
            logger.warning("%s line %d is torn and left out", path, number)
            continue
        rounds[record.round] = record  # a resumed run does its last round again
    return [rounds[number] for number in sorted(rounds)]
