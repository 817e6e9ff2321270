"""What a task's thread says of it on MQTT: it calls, and the event loop tells."""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import time
from collections.abc import Collection, Coroutine
from typing import Any

from flwr.app import Message

from device_agent.reporting import TaskReport
from models.backends import StepReport
from trellis.payloads import Phase, Progress, Reason

logger = logging.getLogger(__name__)

_TELL_S = 5.0


class Teller:
    """The task's report, as its thread may use it: a call returns when the event loop has told it."""

    def __init__(self, loop: asyncio.AbstractEventLoop, report: TaskReport) -> None:
        self._loop = loop
        self._report = report
        self._hushed = False
        self._progress_at = float("-inf")
        self._began = 0.0
        self._reason: Reason | None = None

    def hush(self) -> None:
        """Say nothing any more."""
        self._hushed = True

    def connecting(self, reason: str, *, failed: bool = True) -> None:
        told = Reason(code="unavailable", message=reason) if failed else None
        # A server that is away for hours is told once, not with every try.
        if told is None or told != self._reason:
            self._reason = told
            self._tell(self._report.phase(Phase.CONNECTING, reason=told))

    def fetching(self, waits: Reason | None) -> None:
        """Say that the device has not yet what it trains from, and for what it waits."""
        self._tell(self._report.phase(Phase.FETCHING, reason=waits))

    def connected(self, node_id: int, in_hand: Collection[str]) -> None:
        self._reason = None
        self._tell(self._report.connected(node_id, in_hand))

    def checked_in(self, node_id: int, nonce: str) -> None:
        self._tell(self._report.checked_in(node_id, nonce))

    def asked(self) -> None:
        """Say that the device has a message, and cannot begin yet."""
        self._tell(self._report.phase(Phase.ASKED))

    def working(self, phase: Phase, round_number: int) -> None:
        self._began = time.monotonic()
        self._tell(self._report.phase(phase, round_number=round_number))

    def replying(self, message_id: str) -> None:
        if not self._hushed:
            self._report.replying(message_id)

    def replied(self, message: Message, reply: Message) -> None:
        reason = None
        if reply.has_error():
            reason = Reason(code="training", message=reply.error.reason or f"error {reply.error.code}")
        query = message.metadata.message_type == "query"
        phase = Phase.WAITING if query else Phase.UPLOADED
        self._tell(self._report.uploaded(message.metadata.message_id, phase, reason))

    def step(self, round_number: int, report: StepReport) -> None:
        now = time.monotonic()
        if now - self._progress_at < 1.0:
            return
        self._progress_at = now
        progress = Progress(
            round=round_number,
            epoch=report.epoch,
            epochs=report.epochs,
            step=report.step,
            steps=report.steps,
            loss=report.loss,
            samples=report.samples,
            eta_s=(now - self._began) / report.step * (report.steps - report.step),
        )
        telling = self._unless_hushed(self._report.progress(progress))
        asyncio.run_coroutine_threadsafe(telling, self._loop)

    def _tell(self, telling: Coroutine[Any, Any, None]) -> None:
        told = asyncio.run_coroutine_threadsafe(self._unless_hushed(telling), self._loop)
        try:
            told.result(_TELL_S)
        except concurrent.futures.TimeoutError:
            # It is journaled and queued: a broker that hangs must not stop the training.
            logger.debug("the broker is slow to acknowledge")

    async def _unless_hushed(self, telling: Coroutine[Any, Any, None]) -> None:
        # Asked on the event loop, where the end is told, so that nothing slips in behind it.
        if self._hushed:
            telling.close()
        else:
            await telling
