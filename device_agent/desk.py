"""The tasks that have come to this device: which are believed, which waits, which is in hand."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from datetime import datetime

from device_agent.eligibility import (
    Believed,
    Seen,
    believe,
    require_data,
    require_means,
    require_server,
)
from device_agent.participation import Device, Ending, Participation
from device_agent.reporting import TaskLog, TaskReport, TaskReports
from device_agent.shelf import Shelf
from models.backends import artefact_runtime
from trellis.disk import has_room
from trellis.envelope import Envelope
from trellis.errors import DiskFailed, InvalidInput, Refused
from trellis.execution import central_end
from trellis.mqtt import Bus, Publication
from trellis.payloads import ExecutionState, Phase, Reason, Round, TaskStatus

logger = logging.getLogger(__name__)

RESUME_S = 3.0
"""How long a start waits for the task that was in hand before it takes another."""

SETTLED_S = 30.0
"""How long after a start the descriptors that stand on the broker may take to come."""

_NOT_YET_EQUIPPED = {Phase.VERIFYING, Phase.FETCHING}


class TaskDesk:
    """Takes descriptors, rounds and statuses as they come, in any order and more than once."""

    def __init__(self, device: Device, bus: Bus, log: TaskLog, *, now: Callable[[], datetime]) -> None:
        self._device = device
        self._log = log
        self._now = now
        settings = device.settings
        self._reports = TaskReports(
            bus, device.journal, settings.topics, region=settings.region, device=settings.name
        )
        self._heard: set[str] = set()  # tasks with a descriptor, believed or not
        self._examined: dict[str, Believed] = {}  # since the start, with the hints that came with it
        self._shelf = Shelf()
        self._rounds: dict[str, Round] = {}
        self._statuses: dict[str, TaskStatus] = {}
        self._unfinished = device.journal.unfinished()
        self._queue: dict[str, Believed] = {}
        self._in_hand: tuple[Believed, Participation] | None = None
        self._news = asyncio.Event()

    def standing(self) -> list[Publication]:
        """Return the executions of the tasks in hand and in the queue: a broker may have lost them."""
        in_hand = [self._in_hand[0].descriptor.task] if self._in_hand is not None else []
        tasks = [*self._queue, *in_hand]
        return [one for one in (self._reports.of(task).standing() for task in tasks) if one is not None]

    async def work(self) -> None:
        """Take part in one task after the other; runs until canceled."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(RESUME_S):
                await self._heard_of_unfinished()
        while True:
            while not self._queue:
                self._news.clear()
                await self._news.wait()
            # Those with an attempt behind them go first: a restart must not hand their turn to others.
            task = min(self._queue.values(), key=self._turn)
            await self._take_part(self._queue.pop(task.descriptor.task))

    async def _heard_of_unfinished(self) -> None:
        """Return when what was begun has come again: retained messages come in any order."""
        while self._unfinished:
            self._news.clear()
            await self._news.wait()

    async def descriptor(self, task: str, payload: bytes) -> None:
        """A task came, for the first time or again."""
        self._shelf.drop_untimely(task)
        self._heard.add(task)
        report = self._reports.of(task)
        try:
            believed = believe(
                Envelope.parse(payload),
                task=task,
                region=self._device.settings.region,
                keyring=self._device.settings.keyring,
                seen=self._device.journal.seen(task),
                now=self._now(),
            )
        except (Refused, InvalidInput) as error:
            if isinstance(error, Refused) and error.code in {"clock", "expired"}:
                self._shelf.put_untimely(task, payload)
            await report.refuse(error)
            return
        await self._accept(believed, report)

    async def _accept(self, believed: Believed, report: TaskReport) -> None:
        descriptor, task = believed.descriptor, believed.descriptor.task
        seen = Seen(descriptor.revision, believed.digest)
        self._shelf.take_starved(task)
        try:
            if self._device.journal.seen(task) != seen:
                # In the journal before it is acted on: from here on an older revision is refused.
                self._device.journal.believe(task, seen)
        except DiskFailed as error:
            # A cancellation can only end work, and stands on the broker for the next start.
            if descriptor.desired == "run":
                await self._starve(believed, report, error)
                return
        if not self._is_news(believed):
            await report.again()  # its gateway may be new and know nothing
            return
        self._examined[task] = believed
        if descriptor.desired == "canceled":
            await self._canceled(task, report, descriptor.revision)
        else:
            await self._examine(believed, report)
        self._unfinished.discard(task)
        self._news.set()

    async def removed(self, task: str) -> None:
        """The task's descriptor was cleared: as if it was canceled, and once it has ended, forgotten."""
        self._shelf.drop(task)
        for known in (self._examined, self._rounds, self._statuses):
            known.pop(task, None)
        self._heard.discard(task)
        if task in self._queue or self._has_in_hand(task):
            reason = Reason(code="removed", message="the task was removed")
            await self._end(task, Ending(ExecutionState.CANCELED, reason))
        if not self._has_in_hand(task):
            await self._forget(task)

    async def clear_forgotten(self) -> None:
        """Clear the ended executions of tasks that were removed while this device was away.

        Who was away never heard of it. Should a descriptor come later after all, its execution is said again.
        """
        await asyncio.sleep(SETTLED_S)
        for task, execution in self._device.journal.executions().items():
            if execution.state.ended and task not in self._heard:
                await self._forget(task)

    async def _forget(self, task: str) -> None:
        report = self._reports.of(task)
        if report.execution is not None:
            await report.clear()
        if task not in self._heard:  # it may have come again meanwhile, and is said by the same report
            self._reports.drop(task)

    def round_changed(self, task: str, round_: Round) -> None:
        """The server announced something: a hint to pull."""
        self._rounds[task] = round_
        if self._in_hand is not None and self._has_in_hand(task):
            self._in_hand[1].round_changed(round_)

    async def status(self, task: str, status: TaskStatus) -> None:
        """The gateway says how the task stands."""
        self._statuses[task] = status
        if (ending := self._ended_centrally(task)) is not None:
            await self._end(task, ending)

    async def look_again(self) -> None:
        """Look again at tasks that were out of their time by this device's clock, or found its disk full."""
        while (timely := self._shelf.take_timely(self._now())) is not None:
            await self.descriptor(*timely)
        if not self._shelf.starved or not await asyncio.to_thread(has_room, self._device.settings.state):
            return
        for task in self._shelf.starved:
            # While one is accepted, another may have come anew, or was removed.
            if (believed := self._shelf.take_starved(task)) is not None:
                await self._accept(believed, self._reports.of(task))

    def _is_news(self, came: Believed) -> bool:
        """Whether a task is to be examined; a new place of its artefact is no news once that is here."""
        known = self._examined.get(came.descriptor.task)
        if known is None or (known.digest, known.front) != (came.digest, came.front):
            return True
        if known.artefacts == came.artefacts or artefact_runtime(self._device.settings.backend) is None:
            return False
        last = self._reports.of(came.descriptor.task).execution
        return last is None or last.state is not ExecutionState.IN_PROGRESS or last.phase in _NOT_YET_EQUIPPED

    async def _starve(self, believed: Believed, report: TaskReport, error: DiskFailed) -> None:
        task = believed.descriptor.task
        self._shelf.put_starved(believed)
        self._examined.pop(task, None)
        if task not in self._queue and not self._has_in_hand(task):
            await report.reject(error, believed.descriptor.revision)

    async def _examine(self, believed: Believed, report: TaskReport) -> None:
        task, revision = believed.descriptor.task, believed.descriptor.revision
        last = report.execution
        ended = last is not None and last.state.ended and last.state is not ExecutionState.REJECTED
        if last is not None and ended and last.revision == revision:
            await report.again()  # ended before this process began
            return
        if self._in_hand is not None and self._has_in_hand(task):
            self._in_hand[1].end(Ending(None))  # a new revision, or another front, takes its place
        try:
            require_server(believed, self._device.settings.region, self._device.means())
            require_means(believed.descriptor, self._device.means())
            require_data(believed.descriptor, self._device.data)
        except (Refused, InvalidInput) as error:
            self._queue.pop(task, None)
            await report.reject(error, revision)
            return
        backend = self._device.settings.backend
        await report.queued(revision, samples=len(self._device.data), backend=backend)
        if self._examined.get(task) is not believed:
            return  # while it was said a newer one came, or it was removed
        self._queue[task] = believed
        self._let_pass(believed)
        if (ending := self._ended_centrally(task)) is not None:
            await self._end(task, ending)

    async def _take_part(self, task: Believed) -> None:
        name = task.descriptor.task
        participation = Participation(task, device=self._device, report=self._reports.of(name))
        self._in_hand = (task, participation)
        self._log.task = name
        if name in self._rounds:
            participation.round_changed(self._rounds[name])
        logger.info("task %s: revision %d, the device takes part", name, task.descriptor.revision)
        try:
            ending = await participation.run()
        finally:
            self._in_hand = None
            self._log.task = None
        if name not in self._heard:
            await self._forget(name)  # its descriptor was cleared while it ended
        elif self._examined.get(name) is task:  # nothing newer came while it ended
            if ending.state is ExecutionState.QUEUED:
                self._queue[name] = task
            elif ending.reason is not None and ending.reason.code == "disk":
                self._shelf.put_starved(task)
                del self._examined[name]

    def _let_pass(self, comer: Believed) -> None:
        """Have the task in hand give way to one before it, as long as nothing of it has begun.

        All devices take tasks in the same order then, whatever order they come in: two that each wait for the
        other's would wait for ever.
        """
        if self._in_hand is None:
            return
        task, participation = self._in_hand
        execution = self._reports.of(task.descriptor.task).execution
        begun = execution is None or execution.attempt > 1 or execution.round is not None
        if not begun and _order(comer) < _order(task):
            message = f"it gives way to {comer.descriptor.task}, which was issued before it"
            participation.end(Ending(ExecutionState.QUEUED, Reason(code="turn", message=message)))

    async def _canceled(self, task: str, report: TaskReport, revision: int) -> None:
        reason = Reason(code="canceled", message=f"the operator called the task off with revision {revision}")
        if task in self._queue or self._has_in_hand(task):
            await self._end(task, Ending(ExecutionState.CANCELED, reason, revision))
        elif report.execution is None or not report.execution.state.ended:
            await report.end(ExecutionState.CANCELED, reason, revision=revision)
        else:
            await report.again()

    async def _end(self, task: str, ending: Ending) -> None:
        if self._queue.pop(task, None) is not None and ending.state is not None:
            await self._reports.of(task).end(ending.state, ending.reason, revision=ending.revision)
        if self._in_hand is not None and self._has_in_hand(task):
            self._in_hand[1].end(ending)

    def _ended_centrally(self, task: str) -> Ending | None:
        status = self._statuses.get(task)
        if status is None or status.central is None or not status.central.ended:
            return None
        mine = self._queue.get(task)
        if mine is None and self._in_hand is not None and self._has_in_hand(task):
            mine = self._in_hand[0]
        if mine is None or mine.descriptor.revision != status.revision:
            return None  # it speaks of an earlier revision
        return Ending(*central_end(status.central))

    def _has_in_hand(self, task: str) -> bool:
        return self._in_hand is not None and self._in_hand[0].descriptor.task == task

    def _turn(self, task: Believed) -> tuple[bool, datetime, str]:
        execution = self._reports.of(task.descriptor.task).execution
        first = execution is None or execution.attempt == 1
        return (first, *_order(task))


def _order(task: Believed) -> tuple[datetime, str]:
    return (task.descriptor.issued_at, task.descriptor.task)
