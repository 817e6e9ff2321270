"""Has a tier's SuperLink running only while a task needs it: one costs 265 MB."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterator
from typing import Literal

from trellis.errors import TrellisError
from trellis.tier.supervision import SuperLinkKeeper

logger = logging.getLogger(__name__)

SuperLinkState = Literal["running", "starting", "idle", "down"]
"""`idle` while nobody needs it, `starting` from its first need on, `down` if it failed and is needed."""

_RETRY_S = 10.0


class OnDemand:
    """A keeper at work while somebody needs its SuperLink.

    Args:
        keeper: Keeps the SuperLink.
        on_ended: Called when it was ended because nobody needs it.
        on_trouble: Told why it does not start; it is tried again.
    """

    def __init__(
        self,
        keeper: SuperLinkKeeper,
        *,
        on_ended: Callable[[], None],
        on_trouble: Callable[[str], Awaitable[None]],
    ) -> None:
        self._keeper, self._on_ended, self._on_trouble = keeper, on_ended, on_trouble
        self._users = 0
        self._busy, self._idle = asyncio.Event(), asyncio.Event()

    @property
    def state(self) -> SuperLinkState:
        """How the SuperLink is."""
        if self._keeper.current is not None:
            return "running"
        if not self._users:
            return "idle"
        return "down" if self._keeper.trouble is not None else "starting"

    @contextlib.contextmanager
    def needed(self) -> Iterator[None]:
        """Need the SuperLink until the context is left."""
        self._users += 1
        self._idle.clear()
        self._busy.set()
        try:
            yield
        finally:
            self._users -= 1
            if not self._users:
                self._busy.clear()
                self._idle.set()

    async def run(self) -> None:
        """Start and end it as it is needed, until canceled."""
        while True:
            await self._busy.wait()
            async with asyncio.TaskGroup() as group:
                keeping = group.create_task(self._keep(), name="keep superlink")
                await self._idle.wait()
                keeping.cancel()
            self._on_ended()
            logger.info("the SuperLink is ended: no task needs it")

    async def _keep(self) -> None:
        while True:
            try:
                await self._keeper.run()
            except (TrellisError, OSError) as error:
                logger.error("the SuperLink does not start: %s", error)
                await self._on_trouble(str(error))
            await asyncio.sleep(_RETRY_S)
