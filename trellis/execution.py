"""What a member of a tier says of its part in a task: one retained execution, journaled before it is said."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection
from typing import Any, Protocol

from trellis.errors import DiskFailed
from trellis.mqtt import Publication
from trellis.payloads import Execution, ExecutionState, FlowerLinkage, Phase, Reason, TaskState, now_ms

ENDED = {
    TaskState.SUCCEEDED: ExecutionState.SUCCEEDED,
    TaskState.FAILED: ExecutionState.FAILED,
    TaskState.CANCELED: ExecutionState.CANCELED,
}
"""How a task's end at the server ends it for a member."""


def central_end(state: TaskState) -> tuple[ExecutionState, Reason | None]:
    """Return how a member's execution ends with the server's task, and why."""
    said = Reason(code="server", message=f"the server's task has {state.value}")
    return ENDED[state], None if state is TaskState.SUCCEEDED else said


class Outlet(Protocol):
    """What is used of a `trellis.mqtt.Bus`; a gateway with two brokers says its part on both."""

    async def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> None: ...


logger = logging.getLogger(__name__)


class ExecutionJournal(Protocol):
    """Where executions survive a crash."""

    def execution(self, task: str) -> Execution | None:
        """Return the execution of `task` as it was last written."""

    def write_execution(self, task: str, execution: Execution) -> None:
        """Remember the execution of `task`."""

    def pushing(self, task: str) -> str | None:
        """Return the message whose reply was being uploaded when this was last written."""

    def write_pushing(self, task: str, message_id: str | None) -> None:
        """Remember which message's reply is about to be uploaded."""

    def forget_answers(self, task: str) -> None:
        """Drop what only a task that goes on needs."""


class ExecutionReport:
    """The execution of one task by one member of a tier, a device or a region.

    Every change is journaled, then published, with a version of its own.
    Its methods run on the event loop, but `replying`, which may run in a thread. They return when the broker
    has the change, or has it queued. A full disk does not silence it: after a crash the next start then goes
    on from what was journaled last.

    Args:
        bus: Where it is said.
        journal: Where it survives a crash.
        task: The task's name.
        topic: Its topic.
        write: Has the journal written to, in a thread perhaps; None: at once.
    """

    def __init__(
        self,
        bus: Outlet,
        journal: ExecutionJournal,
        *,
        task: str,
        topic: str,
        write: Callable[[Callable[[], None]], Awaitable[None]] | None = None,
    ) -> None:
        self._bus = bus
        self._write = write or _at_once
        self._turn = asyncio.Lock()
        self._journal = journal
        self.task = task
        self._topic = topic
        self.execution = journal.execution(task)
        self._unkept = False

    async def queued(self, revision: int, *, samples: int | None = None, backend: str | None = None) -> None:
        """The task waits for its turn; an attempt that a crash or a mended fault ended is counted."""
        await self._publish(lambda last: self._queued(last, revision, samples, backend))

    def _queued(
        self, last: Execution | None, revision: int, samples: int | None, backend: str | None
    ) -> Execution:
        never_begun = {ExecutionState.QUEUED, ExecutionState.REJECTED}
        attempt = 1 if last is None else last.attempt + (last.state not in never_begun)
        resumed = last is not None and not last.state.ended and last.revision == revision
        return Execution(
            state=ExecutionState.QUEUED,
            attempt=attempt,
            revision=revision,
            flower=last.flower if last is not None and resumed else None,
            samples=samples,
            backend=backend,
        )

    async def phase(
        self, phase: Phase, *, round_number: int | None = None, reason: Reason | None = None
    ) -> None:
        """The device is at work on the task."""
        changes: dict[str, Any] = {"state": ExecutionState.IN_PROGRESS, "phase": phase, "reason": reason}
        if round_number is not None:
            changes["round"] = round_number
        await self._change(changes)

    async def queues(self, queues: bool) -> None:
        """A member that has begun waits again for its turn, or has it: its attempt is the same."""
        await self._change({"state": ExecutionState.QUEUED if queues else ExecutionState.IN_PROGRESS})

    async def waits(self, reason: Reason | None) -> None:
        """What the member does is held up, and why; None: it goes on."""
        await self._change({"reason": reason})

    async def connected(self, node_id: int, in_hand: Collection[str] = ()) -> None:
        """The device is a Flower node; if it was before, its check-in and last upload still count.

        Args:
            node_id: Which node.
            in_hand: The messages that it has, and has not answered.
        """
        last = self._linkage(node_id)
        changes: dict[str, Any] = {} if in_hand else {"connects": last.connects + 1}
        # A crash between upload and announcement must not hide the reply from the server. One that is still
        # in hand is perhaps half there: a server that pulls it now takes it away from under its upload.
        pushing = self._journal.pushing(self.task)
        if last == self._last_linkage and pushing is not None and pushing not in in_hand:
            changes["message_id"] = pushing
        linkage = last.model_copy(update=changes)
        await self._change({"phase": Phase.WAITING, "reason": None, "flower": linkage})

    async def checked_in(self, node_id: int, nonce: str) -> None:
        """The server has asked who this node is; shown here, the nonce proves the answer."""
        linkage = self._linkage(node_id).model_copy(update={"nonce": nonce, "message_id": None})
        await self._change({"phase": Phase.WAITING, "reason": None, "flower": linkage})

    def replying(self, message_id: str) -> None:
        """A reply is about to be uploaded: a crash from here on is mended at the next start."""
        self._keep(lambda: self._journal.write_pushing(self.task, message_id))

    async def uploaded(self, message_id: str, phase: Phase, reason: Reason | None) -> None:
        """A reply is at the server, and may be pulled there."""
        linkage = self._last_linkage
        if linkage is not None:
            linkage = linkage.model_copy(update={"message_id": message_id})
        await self._change({"phase": phase, "reason": reason, "flower": linkage})

    async def end(self, state: ExecutionState, reason: Reason | None, *, revision: int | None = None) -> None:
        """Nothing follows, unless a new revision or a new start begins another attempt."""
        changes: dict[str, Any] = {"state": state, "phase": None, "reason": reason}
        if revision is not None:
            changes["revision"] = revision
        await self._change(changes)
        # There may be much of it.
        await asyncio.to_thread(self._keep, lambda: self._journal.forget_answers(self.task))

    def standing(self) -> Publication | None:
        """Return the last execution as it stands on the broker."""
        if self.execution is None:
            return None
        return Publication(self._topic, self.execution.to_bytes(), retain=True)

    async def again(self) -> None:
        """Publish the last execution once more, unchanged: a broker may have lost it."""
        if (standing := self.standing()) is not None:
            await self._bus.publish(standing.topic, standing.payload, retain=True)

    async def clear(self) -> None:
        """Remove the execution from the broker; the journal keeps its version and the task's revision."""
        async with self._turn:  # what is being written is said before, what comes after it
            await self._bus.publish(self._topic, b"", retain=True)

    @property
    def _last_linkage(self) -> FlowerLinkage | None:
        return self.execution.flower if self.execution else None

    def _linkage(self, node_id: int) -> FlowerLinkage:
        last = self._last_linkage
        return last if last is not None and last.node_id == node_id else FlowerLinkage(node_id=node_id)

    async def _change(self, changes: dict[str, Any]) -> None:
        await self._publish(
            lambda last: (last or Execution(state=ExecutionState.QUEUED)).model_copy(update=changes)
        )

    async def _publish(self, change: Callable[[Execution | None], Execution]) -> None:
        async with self._turn:
            last = self.execution
            version = last.version + 1 if last else 1
            new = change(last).model_copy(update={"version": version, "ts": now_ms()})
            await self._write(lambda: self._keep(lambda: self._journal.write_execution(self.task, new)))
            self.execution = new
        # No await between the end of a turn and handing over: versions leave in their order.
        await self._bus.publish(self._topic, new.to_bytes(), retain=True)

    def _keep(self, write: Callable[[], None]) -> None:
        try:
            write()
        except DiskFailed as error:
            if not self._unkept:
                logger.error("task %s: %s", self.task, error, extra={"task": self.task})
            self._unkept = True
        else:
            self._unkept = False


async def _at_once(write: Callable[[], None]) -> None:
    write()
