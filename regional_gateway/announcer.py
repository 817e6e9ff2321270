"""Says what changes in the region's tasks: at once, and statuses a moment later and only if they are news."""

from __future__ import annotations

import asyncio

from regional_gateway.board import Board
from regional_gateway.ledger import Ledger, TaskRecord
from regional_gateway.outlet import Outlet
from trellis.mqtt import Publication

GATHER_S = 0.05
"""A whole fleet may change state at once: its changes of this long make one status."""


class Announcer:
    """Publishes the board's news on the region's broker, and statuses on the parent's too.

    Args:
        board: What is said.
        ledger: The tasks it is said of.
        region: The region's broker.
        parent: The parent's, or `None` where both are one.
    """

    def __init__(self, board: Board, ledger: Ledger, region: Outlet, parent: Outlet | None) -> None:
        self.board = board
        self._ledger, self._region, self._parent = ledger, region, parent
        self._touched: set[str] = set()
        self._news = asyncio.Event()

    async def descriptor(self, record: TaskRecord) -> None:
        """Publish a task's descriptor, and its status with it."""
        await self._region.send(self.board.descriptor_publication(record))
        self.touch(record.task)

    async def round(self, task: str, payload: bytes) -> None:
        """Publish a round; an empty payload removes it. The region's own stands on both brokers."""
        publication = self.board.round_publication(task, payload)
        await (self.everywhere if self.board.is_own(task) else self._region.send)(publication)

    async def cleared(self, record: TaskRecord) -> None:
        """Remove a task's topics."""
        await self._region.send(self.board.descriptor_publication(record))
        await self.round(record.task, b"")
        await self.everywhere(self.board.status_publication(record))

    def touch(self, task: str) -> None:
        """Have the status of `task` looked at soon."""
        self._touched.add(task)
        self._news.set()

    async def run(self) -> None:
        """Publish the statuses of touched tasks, until cancelled."""
        while True:
            await self._news.wait()
            self._news.clear()
            touched, self._touched = self._touched, set()
            for record in filter(None, map(self._ledger.get, sorted(touched))):
                if (publication := self.board.status_news(record)) is not None:
                    await self.everywhere(publication)
            await asyncio.sleep(GATHER_S)

    async def everywhere(self, publication: Publication) -> None:
        """Publish on the region's broker, and on the parent's where that is another."""
        await self._region.send(publication)
        if self._parent is not None:
            await self._parent.send(publication)
