"""The gateway's own `state`: birth, will, farewell, and what to make of another's word on it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field

from regional_gateway.outlet import Outlet
from trellis.errors import Displaced, PayloadError, Unavailable
from trellis.identifiers import CENTRAL
from trellis.mqtt import Bus, Publication
from trellis.payloads import Presence, State, now_ms

logger = logging.getLogger(__name__)

FAREWELL_S = 2.0


@dataclass(frozen=True)
class OwnPresence:
    """One process's presence on the topic `<region>/gateway/state`.

    Attributes:
        topic: Where it is said.
        api: URL of the HTTP API.
        parent: The tier above.
        boot_id: Drawn anew at every start.
        since: When this process began, ms.
    """

    topic: str
    api: str
    parent: str = CENTRAL
    boot_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    since: int = field(default_factory=now_ms)

    def birth(self) -> Publication:
        """Return what is said at every connect."""
        return self._say(Presence.ONLINE, self.since)

    def will(self) -> Publication:
        """Return what the broker says when it loses this process."""
        return self._say(Presence.OFFLINE, self.since)

    def farewell(self) -> Publication:
        """Return what is said at a clean end."""
        return self._say(Presence.OFFLINE, now_ms())

    def must_be_repeated(self, heard: State) -> bool:
        """Whether the birth must be said again: a will, an old one or a late one, has covered it.

        Raises:
            Displaced: A younger gateway of this region is online.
        """
        if heard.state is Presence.OFFLINE:
            return True
        if heard.boot_id != self.boot_id and heard.since > self.since:
            raise Displaced(
                f"topic {self.topic}: another gateway of this region has started (its API: "
                f"{heard.api or 'unknown'}): a region has one, so this one ends"
            )
        return False

    def _say(self, presence: Presence, since: int) -> Publication:
        state = State(state=presence, boot_id=self.boot_id, since=since, api=self.api, parent=self.parent)
        return Publication(self.topic, state.to_bytes(), retain=True)


async def watch_own(own: OwnPresence, bus: Bus, outlet: Outlet) -> None:
    """Say the birth again whenever another word covers it, until cancelled.

    Raises:
        Displaced: A younger gateway of this region is online.
    """
    async with bus.subscribe(own.topic) as messages:
        async for message in messages:
            try:
                heard = State.parse(message.payload) if message.payload else None
            except PayloadError as error:
                logger.warning("dropped what came on topic=%s: %s", message.topic, error)
                continue
            if heard is None or own.must_be_repeated(heard):
                await outlet.send(own.birth())


async def say_farewell(own: OwnPresence, buses: Sequence[Bus]) -> None:
    """Say at a clean end that this process is there no more."""
    farewell = own.farewell()
    for bus in buses:
        with contextlib.suppress(TimeoutError, Unavailable):
            async with asyncio.timeout(FAREWELL_S):
                await bus.publish(farewell.topic, farewell.payload, qos=1, retain=True)
