"""Keeps a picture up to date from a bus, so that others can show it and wait for what they need in it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

from trellis.cli.watching.picture import Picture, fold
from trellis.cli.watching.screen import Screen
from trellis.mqtt.messages import BusMessage
from trellis.topics import Topics


class Follower:
    """The picture of one bus; `picture` is the latest."""

    def __init__(self, topics: Topics, screen: Screen) -> None:
        self.picture = Picture()
        self._topics, self._screen = topics, screen
        self._changed = asyncio.Event()

    async def run(self, messages: AsyncIterator[BusMessage]) -> None:
        """Fold what comes until the subscription ends."""
        async for message in messages:
            self.picture = fold(self.picture, message, self._topics)
            self._screen.show(self.picture)
            self._changed.set()

    async def until(self, holds: Callable[[Picture], bool], *, timeout_s: float | None) -> Picture:
        """Return the first picture of which `holds` is true.

        Raises:
            TimeoutError: None came in time.
        """
        async with asyncio.timeout(timeout_s):
            while not holds(self.picture):
                self._changed.clear()
                await self._changed.wait()
        return self.picture
