"""Says on a region's execution what its app does as a member of the tier above, or why it does nothing."""

from __future__ import annotations

import asyncio
from typing import TypeVar

from regional_gateway.turn import Turn
from trellis.errors import PayloadError
from trellis.execution import ExecutionReport
from trellis.flower.backchannel import Uplink
from trellis.payloads import Phase, Reason

T = TypeVar("T")


class Telling:
    """What an app's news make of the region's execution.

    Args:
        report: Says the execution.
        turn: Whether the region is queued, as its members are.
    """

    def __init__(self, report: ExecutionReport, turn: Turn) -> None:
        self._report, self._turn = report, turn
        self._waits: Reason | None = None  # for whom the app says that it waits
        self._recovering = False

    def came(self) -> None:
        """An app has said its first word: what follows is its own."""
        self._recovering = False

    async def recovers(self, why: str) -> None:
        """Its app has gone: what that had in hand goes on only in another."""
        self._recovering = True
        await self.connecting(
            Reason(code="recovering", message=f"{why}: another app is started, and goes on")
        )

    async def connecting(self, reason: Reason | None) -> None:
        """It is no member of the tier above at present."""
        await self._report.phase(Phase.CONNECTING, reason=reason)
        if self._turn.queues:
            await self._report.queues(True)

    async def waits(self, reason: Reason | None) -> None:
        """What the app says that it waits for shows until it goes on, unless another reason stands there."""
        before, self._waits = self._waits, reason
        said = self._report.execution.reason if self._report.execution else None
        if reason != said and (reason is not None or said == before):
            await self._report.waits(reason)

    async def uplink(self, news: Uplink) -> None:
        """Say what the app has done; returns once it is said, or queued."""
        report = self._report
        if self._recovering and news.event not in {"replying", "replied"}:
            return  # of an app that is being put away: only what has left it is true
        match news.event:
            case "connecting":
                await self.connecting(news.reason)
            case "connected":
                await report.connected(_due(news, news.node_id, "node_id"), news.in_hand)
            case "checked-in":
                await report.checked_in(_due(news, news.node_id, "node_id"), _due(news, news.nonce, "nonce"))
            case "asked" | "training" | "evaluating":
                self._turn.came()
                await report.phase(Phase(news.event), round_number=news.round)
            case "replying":
                await asyncio.to_thread(report.replying, _due(news, news.message_id, "message_id"))
            case "replied":
                phase = Phase.WAITING if news.kind == "query" else Phase.UPLOADED
                await report.uploaded(_due(news, news.message_id, "message_id"), phase, news.reason)


def _due(news: Uplink, value: T | None, field: str) -> T:
    if value is None:
        raise PayloadError(f"uplink {news.event!r}", f"comes without {field}")
    return value
