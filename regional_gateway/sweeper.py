"""Removes the topics of tasks that ended long ago."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace

from regional_gateway.announcer import Announcer
from regional_gateway.ledger import Ledger, TaskRecord
from trellis.errors import Unavailable
from trellis.payloads import now_ms

logger = logging.getLogger(__name__)

_LEAST_S, _MOST_S = 0.1, 60.0


async def sweep(ledger: Ledger, announcer: Announcer, *, keep_s: float) -> None:
    """Clear each task's topics `keep_s` seconds after its end, until cancelled."""
    while True:
        for record in ledger:
            try:
                await _look_at(record, ledger, announcer, int(keep_s * 1000))
            except Unavailable as error:
                logger.error("old task is not cleared task=%s: %s", record.task, error)
        await asyncio.sleep(min(_MOST_S, max(_LEAST_S, keep_s / 10)))


def is_due(record: TaskRecord, *, now_ms: int, keep_ms: int) -> bool:
    """Whether the topics of `record` have stood long enough."""
    return not record.cleared and now_ms - record.over_ms >= keep_ms


async def _look_at(record: TaskRecord, ledger: Ledger, announcer: Announcer, keep_ms: int) -> None:
    if record.cleared and now_ms() > record.expires_ms + keep_ms:
        # Nobody would take its envelope up again: its revision need not be remembered.
        await ledger.change(record.task, lambda _: None)
        return

    def clear(known: TaskRecord | None) -> TaskRecord | None:
        due = known is not None and is_due(known, now_ms=now_ms(), keep_ms=keep_ms)
        return replace(known, cleared=True) if known is not None and due else known

    cleared, changed = await ledger.change(record.task, clear)
    if changed and cleared is not None:
        logger.info("task's topics cleared task=%s", cleared.task)
        await announcer.cleared(cleared)
