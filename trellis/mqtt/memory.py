"""A broker in memory, with buses that keep the same contract as those on a real one."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence

from trellis.mqtt.backoff import Backoff
from trellis.mqtt.filters import match
from trellis.mqtt.inbox import Delivery
from trellis.mqtt.messages import Birth, BusMessage, Publication
from trellis.mqtt.reconnecting import Limits, ReconnectingBus
from trellis.mqtt.session import ConnectionLost, Session

_BACKOFF = Backoff(first_s=0.01, soon_s=0.1)


class MemoryBroker:
    """Keeps retained messages, routes by wildcards and fires wills, all in this process and loop."""

    def __init__(self) -> None:
        self._retained: dict[str, Publication] = {}
        self._sessions: dict[str, _MemorySession] = {}
        self._running = True

    def bus(
        self,
        client_id: str,
        *,
        will: Publication | None = None,
        birth: Birth = (),
        limits: Limits | None = None,
        backoff: Backoff | None = None,
    ) -> ReconnectingBus:
        """Return a bus of this broker; a second open one with the same id displaces the first."""
        dialer = _MemoryDialer(self, client_id, will)
        return ReconnectingBus(dialer, birth=birth, backoff=backoff or _BACKOFF, limits=limits)

    def cut(self, client_id: str) -> None:
        """Drop a client without goodbye: its will fires, and its bus connects again by itself."""
        if (session := self._sessions.get(client_id)) is not None:
            self._leave(session, "cut by the broker", goodbye=False)

    def stop(self) -> None:
        """Die as a killed broker does: no will fires, and what was retained is gone."""
        self._running = False
        for session in self._sessions.values():
            session.end("the broker is stopped")
        self._sessions.clear()
        self._retained.clear()

    def start(self) -> None:
        self._running = True

    def _join(self, session: _MemorySession) -> None:
        if not self._running:
            raise ConnectionLost("the broker is stopped")
        if (elder := self._sessions.get(session.client_id)) is not None:
            self._leave(elder, "displaced by another client with this id", goodbye=False)
        self._sessions[session.client_id] = session

    def _leave(self, session: _MemorySession, reason: str, *, goodbye: bool) -> None:
        session.end(reason)
        if self._sessions.get(session.client_id) is not session:
            return
        del self._sessions[session.client_id]
        if session.will is not None and not goodbye:
            self._route(session.will)

    def _route(self, publication: Publication) -> None:
        if publication.retain and publication.payload:
            self._retained[publication.topic] = publication
        elif publication.retain:
            self._retained.pop(publication.topic, None)
        message = BusMessage(publication.topic, publication.payload, retain=False)
        for session in self._sessions.values():
            if any(match(filter, publication.topic) for filter in session.filters):
                session.waiting.put_nowait(Delivery(message, publication.qos))

    def _send_retained(self, session: _MemorySession, filter: str) -> None:
        for topic, publication in self._retained.items():
            if match(filter, topic):
                message = BusMessage(topic, publication.payload, retain=True)
                session.waiting.put_nowait(Delivery(message, publication.qos))


class _MemoryDialer:
    def __init__(self, broker: MemoryBroker, client_id: str, will: Publication | None) -> None:
        self._broker = broker
        self._will = will
        self.url = "memory:"
        self.client_id = client_id

    @contextlib.asynccontextmanager
    async def connect(self) -> AsyncIterator[Session]:
        session = _MemorySession(self._broker, self.client_id, self._will)
        self._broker._join(session)
        try:
            yield session
        finally:
            self._broker._leave(session, "closed", goodbye=True)


class _MemorySession:
    def __init__(self, broker: MemoryBroker, client_id: str, will: Publication | None) -> None:
        self.client_id = client_id
        self.will = will
        self.filters: set[str] = set()
        self.waiting: asyncio.Queue[Delivery | None] = asyncio.Queue()
        self._broker = broker
        self._ended: str | None = None

    def end(self, reason: str) -> None:
        if self._ended is None:
            self._ended = reason
            self.waiting.put_nowait(None)

    async def publish(self, publication: Publication) -> None:
        self._check()
        self._broker._route(publication)
        await asyncio.sleep(0)  # others get their turn, as with a real broker

    async def subscribe(self, filters: Sequence[str]) -> Sequence[str]:
        self._check()
        for filter in filters:
            self.filters.add(filter)
            self._broker._send_retained(self, filter)
        await asyncio.sleep(0)
        return ()

    async def unsubscribe(self, filters: Sequence[str]) -> None:
        self._check()
        self.filters.difference_update(filters)

    def abandon(self) -> None:
        self._broker._leave(self, "abandoned", goodbye=False)

    async def deliveries(self) -> AsyncIterator[Delivery]:
        while (delivery := await self.waiting.get()) is not None:
            yield delivery
        self._check()

    def _check(self) -> None:
        if self._ended is not None:
            raise ConnectionLost(self._ended)
