"""What is written at a task's end: `summary.json` for machines, then `report.html` for people."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path

from central_server.report.page import render
from central_server.store import METRICS, REPORT, SUMMARY, TaskRecord
from central_server.summary import Summary, summarise
from trellis.descriptor import TaskDescriptor
from trellis.files import write_atomically
from trellis.flower.backchannel import FleetDevice, RoundRecord
from trellis.tier.history import read_content, rounds_in

logger = logging.getLogger(__name__)


def write_papers(
    folder: Path,
    record: TaskRecord,
    descriptor: TaskDescriptor,
    devices: Iterable[FleetDevice],
    *,
    missing: bool = False,
) -> None:
    """Write a task's papers into its folder, of the rounds that stand there; or the `missing` ones alone.

    A summary that stands there then tells the report of the devices, too: nobody has heard of them again.
    One that cannot be made is named in the log, with why.

    Raises:
        OSError: The disk does not take them.
    """
    metrics = folder / METRICS
    stands = {name for name in (SUMMARY, REPORT) if missing and (folder / name).is_file()}

    @cache
    def history() -> list[RoundRecord]:
        return rounds_in(read_content(metrics), metrics, record.round)

    @cache
    def summary() -> Summary:
        if SUMMARY in stands:
            return Summary.model_validate_json((folder / SUMMARY).read_bytes())
        return summarise(record, history(), devices, folder)

    makers: dict[str, Callable[[], str]] = {
        SUMMARY: lambda: summary().model_dump_json(indent=2) + "\n",
        REPORT: lambda: render(summary(), history(), descriptor),
    }
    for name, make in makers.items():
        if name in stands:
            continue
        try:
            text = make()
        except Exception:
            # They show what machines far away have said: no number of theirs decides how a task ends.
            logger.exception("task=%s: %s cannot be made: the task ends without it", record.task, name)
        else:
            write_atomically(folder / name, text.encode())
