"""A member's execution: journaled before it is said, in the order of its versions, wherever it is written."""

from __future__ import annotations

import asyncio
import threading
from typing import Any, cast

from trellis.execution import ExecutionReport
from trellis.payloads import Execution, ExecutionState, Phase


class HeldJournal:
    """Writes when it is let, and notes in which thread it did."""

    def __init__(self) -> None:
        self.let = threading.Semaphore(0)
        self.written: list[int] = []
        self.threads: set[int] = set()

    def execution(self, _: str) -> None:
        return None

    def write_execution(self, _: str, execution: Execution) -> None:
        assert self.let.acquire(timeout=30), "whoever lets it write is held up"
        self.threads.add(threading.get_ident())
        self.written.append(execution.version)

    def forget_answers(self, _: str) -> None:
        assert self.let.acquire(timeout=30), "whoever lets it write is held up"
        self.threads.add(threading.get_ident())


class Heard:
    """Notes which versions are said, each of which must be on disk by then."""

    def __init__(self, journal: HeldJournal) -> None:
        self.versions: list[int] = []
        self.first = asyncio.Event()
        self._journal = journal

    async def publish(self, _: str, payload: bytes, **__: Any) -> None:
        self.versions.append(Execution.parse(payload).version)
        assert self.versions[-1] in self._journal.written
        self.first.set()


async def test_changes_written_in_a_thread_leave_in_their_order_and_hold_up_nobody() -> None:
    journal = HeldJournal()
    heard = Heard(journal)
    report = ExecutionReport(heard, cast(Any, journal), task="t", topic="x", write=asyncio.to_thread)
    saying = asyncio.gather(*(report.phase(Phase.TRAINING, round_number=number) for number in range(1, 5)))
    for _ in range(4):
        await asyncio.sleep(0.01)
        assert not saying.done()
        journal.let.release()
    await asyncio.wait_for(saying, 30)
    assert heard.versions == journal.written == [1, 2, 3, 4]
    assert report.execution is not None
    assert report.execution.round == 4
    assert threading.get_ident() not in journal.threads


async def test_what_a_task_leaves_behind_is_dropped_in_a_thread_wherever_changes_are_written() -> None:
    journal = HeldJournal()
    heard = Heard(journal)
    report = ExecutionReport(heard, cast(Any, journal), task="t", topic="x")
    journal.let.release()
    ending = asyncio.create_task(report.end(ExecutionState.SUCCEEDED, None))
    await asyncio.wait_for(heard.first.wait(), 30)
    assert journal.threads == {threading.get_ident()}
    await asyncio.sleep(0.01)
    assert not ending.done()
    journal.let.release()
    await asyncio.wait_for(ending, 30)
    assert len(journal.threads) == 2
