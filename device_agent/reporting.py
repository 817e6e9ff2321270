"""What a device says of one task: its execution, its progress, its log lines."""

from __future__ import annotations

import functools
import logging
from contextvars import ContextVar

from device_agent.eligibility import reason_of
from device_agent.journal import Journal
from trellis.errors import TrellisError
from trellis.execution import ExecutionReport
from trellis.mqtt import Bus
from trellis.payloads import ExecutionState, Progress
from trellis.task_log import LineHandler, TaskLines, log_of
from trellis.topics import Kind, Topics

logger = logging.getLogger(__name__)

SPEAKER: ContextVar[str | None] = ContextVar("speaker", default=None)
"""The device, `<region>/devices/<device>`, whose code is running: several may share a process."""

HERE_ONLY = "here_only"
"""A log record that has this set is not published: nobody above needs it."""


class TaskReport(ExecutionReport):
    """A device's execution of one task, and how far its training is."""

    def __init__(
        self, bus: Bus, journal: Journal, topics: Topics, *, region: str, device: str, task: str
    ) -> None:
        where = {"region": region, "device": device, "task": task}
        super().__init__(bus, journal, task=task, topic=topics.path(Kind.EXECUTION, **where))
        self._progress_topic = topics.path(Kind.PROGRESS, **where)

    async def progress(self, progress: Progress) -> None:
        """Publish where training stands."""
        await self._bus.publish(self._progress_topic, progress.to_bytes(), qos=0)

    async def reject(self, error: TrellisError, revision: int) -> None:
        """Say, once, why the device does not take part in this revision."""
        reason, last = reason_of(error), self.execution
        if (
            last is not None
            and (last.state, last.revision) == (ExecutionState.REJECTED, revision)
            and last.reason is not None
            and last.reason.code == reason.code
        ):
            await self.again()
            return
        logger.error("task %s is rejected: %s", self.task, error, extra={"task": self.task})
        await self.end(ExecutionState.REJECTED, reason, revision=revision)

    async def refuse(self, error: TrellisError) -> None:
        """Say that a descriptor is not believed; what it is not may not end what was believed."""
        if self.execution is None or self.execution.state is ExecutionState.REJECTED:
            await self.reject(error, 0)
        else:
            logger.error(
                "a descriptor of task %s is refused: %s", self.task, error, extra={"task": self.task}
            )


class TaskReports:
    """The reports of a device's tasks, one for each, made when it is first asked for."""

    def __init__(self, bus: Bus, journal: Journal, topics: Topics, *, region: str, device: str) -> None:
        self._make = functools.partial(TaskReport, bus, journal, topics, region=region, device=device)
        self._known: dict[str, TaskReport] = {}

    def of(self, task: str) -> TaskReport:
        """Return the task's report."""
        if task not in self._known:
            self._known[task] = self._make(task=task)
        return self._known[task]

    def drop(self, task: str) -> None:
        """Have the next one that is asked for begin with what the journal says."""
        self._known.pop(task, None)


class TaskLog(LineHandler):
    """Publishes log lines of the task in hand, tracebacks included, at most ten a second.

    Not those of another device in this process; whose a line is stands in `SPEAKER`.
    """

    def __init__(self, bus: Bus, topics: Topics, *, region: str, device: str) -> None:
        super().__init__()

        def topic_of(task: str) -> str:
            return topics.path(Kind.LOG, region=region, device=device, task=task)

        self._lines = TaskLines(bus, topic_of)
        self._speaker = f"{region}/devices/{device}"
        self.task: str | None = None

    async def run(self) -> None:
        """Publish the lines until cancelled."""
        await self._lines.run()

    def hand_on(self, record: logging.LogRecord) -> None:
        """Publish `record` if it belongs to a task: its own (`extra={"task": …}`), or the one in hand."""
        if SPEAKER.get() not in {None, self._speaker} or getattr(record, HERE_ONLY, False):
            return
        task = getattr(record, "task", None) or self.task
        if task is not None:
            self._lines.say(str(task), log_of(record))
