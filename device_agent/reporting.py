"""What a device says of one task: its execution, its progress, its log lines."""

from __future__ import annotations

import asyncio
import logging
import time
import traceback
from collections import deque
from contextvars import ContextVar

from device_agent.eligibility import reason_of
from device_agent.journal import Journal
from trellis.errors import TrellisError
from trellis.execution import ExecutionReport
from trellis.mqtt import Bus
from trellis.payloads import ExecutionState, Log, Progress
from trellis.topics import Kind, Topics

logger = logging.getLogger(__name__)

SPEAKER: ContextVar[str | None] = ContextVar("speaker", default=None)
"""The device, `<region>/devices/<device>`, whose code is running: several may share a process."""

HERE_ONLY = "here_only"
"""A log record that has this set is not published: nobody above needs it."""
LINES_A_SECOND = 10
_LINE_CHARS = 8000


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


class TaskLog(logging.Handler):
    """Publishes log lines of the task in hand, tracebacks included, at most ten a second.

    Not those of another device in this process; whose a line is stands in `SPEAKER`.
    """

    def __init__(
        self, bus: Bus, topics: Topics, *, region: str, device: str, loop: asyncio.AbstractEventLoop
    ) -> None:
        super().__init__(logging.INFO)
        self._bus = bus
        self._topics = topics
        self._region, self._device = region, device
        self._speaker = f"{region}/devices/{device}"
        self._loop = loop
        self._times: deque[float] = deque(maxlen=LINES_A_SECOND)
        self._left_out = 0
        self._publishing: set[asyncio.Task[None]] = set()
        self.task: str | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Publish `record` if it belongs to a task: its own (`extra={"task": …}`), or the one in hand."""
        if SPEAKER.get() not in {None, self._speaker} or getattr(record, HERE_ONLY, False):
            return
        task = getattr(record, "task", None) or self.task
        if task is None or self._loop.is_closed():
            return
        try:
            self._loop.call_soon_threadsafe(self._line, str(task), _logged(record))
        except RuntimeError:
            return  # the loop was closed between the question and the call

    def _line(self, task: str, log: Log) -> None:
        now = time.monotonic()
        if len(self._times) == LINES_A_SECOND and now - self._times[0] < 1.0:
            self._left_out += 1
            return
        self._times.append(now)
        if self._left_out:
            log = log.model_copy(update={"message": f"({self._left_out} lines left out) {log.message}"})
            self._left_out = 0
        topic = self._topics.path(Kind.LOG, region=self._region, device=self._device, task=task)
        publishing = asyncio.ensure_future(self._bus.publish(topic, log.to_bytes(), qos=0))
        self._publishing.add(publishing)
        publishing.add_done_callback(self._published)

    def _published(self, publishing: asyncio.Task[None]) -> None:
        self._publishing.discard(publishing)
        if not publishing.cancelled():
            publishing.exception()  # a log line that the bus could not take is no news to log


def _logged(record: logging.LogRecord) -> Log:
    message = record.getMessage()
    if record.exc_info and record.exc_info[1] is not None:
        message = "\n".join([message, "".join(traceback.format_exception(record.exc_info[1])).rstrip()])
    level = (
        record.levelname if record.levelname in {"DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"} else "INFO"
    )
    # A long message's end says more than its middle: a traceback's last line is the error.
    if len(message) > _LINE_CHARS:
        message = f"{message[: _LINE_CHARS // 2]}\n…\n{message[-_LINE_CHARS // 2 :]}"
    return Log.model_validate({"level": level, "logger": record.name, "message": message})
