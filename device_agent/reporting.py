"""What a device says of one task: its execution, its progress, its log lines."""

from __future__ import annotations

import asyncio
import logging
import time
import traceback
from collections import deque
from typing import Any

from device_agent.journal import Journal
from trellis.mqtt import Bus, Publication
from trellis.payloads import (
    Execution,
    ExecutionState,
    FlowerLinkage,
    Log,
    Phase,
    Progress,
    Reason,
    now_ms,
)
from trellis.topics import Kind, Topics

LINES_A_SECOND = 10
_LINE_CHARS = 8000


class TaskReport:
    """The execution of one task: every change is journaled, then published, with a version of its own.

    Its methods run on the event loop. They return when the broker has the change, or has it queued.
    """

    def __init__(
        self, bus: Bus, journal: Journal, topics: Topics, *, region: str, device: str, task: str
    ) -> None:
        self._bus = bus
        self._journal = journal
        self.task = task
        self._execution_topic = topics.path(Kind.EXECUTION, region=region, device=device, task=task)
        self._progress_topic = topics.path(Kind.PROGRESS, region=region, device=device, task=task)
        self.execution = journal.execution(task)

    async def queued(self, revision: int, *, samples: int, backend: str) -> None:
        """The task waits for its turn; an attempt that a crash or a mended fault ended is counted."""
        last = self.execution
        never_begun = {ExecutionState.QUEUED, ExecutionState.REJECTED}
        attempt = 1 if last is None else last.attempt + (last.state not in never_begun)
        resumed = last is not None and not last.state.ended and last.revision == revision
        await self._publish(
            Execution(
                state=ExecutionState.QUEUED,
                attempt=attempt,
                revision=revision,
                flower=last.flower if last is not None and resumed else None,
                samples=samples,
                backend=backend,
            )
        )

    async def phase(
        self, phase: Phase, *, round_number: int | None = None, reason: Reason | None = None
    ) -> None:
        """The device is at work on the task."""
        changes: dict[str, Any] = {"state": ExecutionState.IN_PROGRESS, "phase": phase, "reason": reason}
        if round_number is not None:
            changes["round"] = round_number
        await self._change(changes)

    async def connected(self, node_id: int) -> None:
        """The device is a Flower node; if it was before, its check-in and last upload still count."""
        last = self.execution.flower if self.execution else None
        if last is None or last.node_id != node_id:
            linkage = FlowerLinkage(node_id=node_id)
        else:
            # A crash between upload and announcement must not hide the reply from the server.
            pushing = self._journal.pushing(self.task)
            linkage = last.model_copy(update={"message_id": pushing or last.message_id})
        await self._change({"phase": Phase.WAITING, "reason": None, "flower": linkage})

    async def checked_in(self, node_id: int, nonce: str) -> None:
        """The server has asked who this node is; shown here, the nonce proves the answer."""
        linkage = FlowerLinkage(node_id=node_id, nonce=nonce)
        await self._change({"phase": Phase.WAITING, "reason": None, "flower": linkage})

    def replying(self, message_id: str) -> None:
        """A reply is about to be uploaded: a crash from here on is mended at the next start."""
        self._journal.write_pushing(self.task, message_id)

    async def uploaded(self, message_id: str, phase: Phase, reason: Reason | None) -> None:
        """A reply is at the server, and may be pulled there."""
        linkage = self.execution.flower if self.execution else None
        if linkage is not None:
            linkage = linkage.model_copy(update={"message_id": message_id})
        await self._change({"phase": phase, "reason": reason, "flower": linkage})

    async def end(self, state: ExecutionState, reason: Reason | None, *, revision: int | None = None) -> None:
        """Nothing follows, unless a new revision or a new start begins another attempt."""
        changes: dict[str, Any] = {"state": state, "phase": None, "reason": reason}
        if revision is not None:
            changes["revision"] = revision
        await self._change(changes)
        self._journal.forget_answers(self.task)

    def standing(self) -> Publication | None:
        """Return the last execution as it stands on the broker."""
        if self.execution is None:
            return None
        return Publication(self._execution_topic, self.execution.to_bytes(), retain=True)

    async def again(self) -> None:
        """Publish the last execution once more, unchanged: a broker may have lost it."""
        if (standing := self.standing()) is not None:
            await self._bus.publish(standing.topic, standing.payload, retain=True)

    async def clear(self) -> None:
        """Remove the execution from the broker; the journal keeps its version and the task's revision."""
        await self._bus.publish(self._execution_topic, b"", retain=True)

    async def progress(self, progress: Progress) -> None:
        """Publish where training stands."""
        await self._bus.publish(self._progress_topic, progress.to_bytes(), qos=0)

    async def _change(self, changes: dict[str, Any]) -> None:
        last = self.execution or Execution(state=ExecutionState.QUEUED)
        await self._publish(last.model_copy(update=changes))

    async def _publish(self, execution: Execution) -> None:
        # No await between counting and handing over: versions leave in their order.
        version = self.execution.version + 1 if self.execution else 1
        self.execution = execution.model_copy(update={"version": version, "ts": now_ms()})
        self._journal.write_execution(self.task, self.execution)
        await self._bus.publish(self._execution_topic, self.execution.to_bytes(), retain=True)


class TaskLog(logging.Handler):
    """Publishes log lines of the task in hand, tracebacks included, at most ten a second."""

    def __init__(
        self, bus: Bus, topics: Topics, *, region: str, device: str, loop: asyncio.AbstractEventLoop
    ) -> None:
        super().__init__(logging.INFO)
        self._bus = bus
        self._topics = topics
        self._region, self._device = region, device
        self._loop = loop
        self._times: deque[float] = deque(maxlen=LINES_A_SECOND)
        self._left_out = 0
        self._publishing: set[asyncio.Task[None]] = set()
        self.task: str | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Publish `record` if it belongs to a task: its own (`extra={"task": …}`), or the one in hand."""
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
