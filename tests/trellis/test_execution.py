"""A member's execution: journaled before it is said, in the order of its versions, wherever it is written."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any, cast

from trellis.execution import ExecutionReport
from trellis.payloads import Execution, Phase


class SlowJournal:
    """Takes its time to write, and notes in which thread it did."""

    def __init__(self) -> None:
        self.written: list[int] = []
        self.threads: set[int] = set()

    def execution(self, _: str) -> None:
        return None

    def write_execution(self, _: str, execution: Execution) -> None:
        time.sleep(0.05)
        self.threads.add(threading.get_ident())
        self.written.append(execution.version)


class Heard:
    """Notes which versions are said, each of which must be on disk by then."""

    def __init__(self, journal: SlowJournal) -> None:
        self.versions: list[int] = []
        self._journal = journal

    async def publish(self, _: str, payload: bytes, **__: Any) -> None:
        self.versions.append(Execution.parse(payload).version)
        assert self.versions[-1] in self._journal.written


async def test_changes_written_in_a_thread_leave_in_their_order_and_hold_up_nobody() -> None:
    journal = SlowJournal()
    heard = Heard(journal)
    report = ExecutionReport(heard, cast(Any, journal), task="t", topic="x", write=asyncio.to_thread)
    saying = asyncio.gather(*(report.phase(Phase.TRAINING, round_number=number) for number in range(1, 5)))
    steps = 0
    while not saying.done():
        await asyncio.sleep(0.005)
        steps += 1
    assert steps >= 8  # of some 40 in the 0.2 s that four writes take; none, were they made here
    assert heard.versions == journal.written == [1, 2, 3, 4]
    assert report.execution is not None
    assert report.execution.round == 4
    assert threading.get_ident() not in journal.threads
