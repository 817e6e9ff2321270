"""The server's own topics, and it alone writes them: `central/state`, and each task's state and round."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Sequence

from trellis.errors import Displaced, PayloadError
from trellis.mqtt import Bus, Publication
from trellis.payloads import CentralTask, Presence, Round, State, now_ms
from trellis.topics import Kind, Topics

logger = logging.getLogger(__name__)

_PUBLISH_S = 2.0


class Publisher:
    """Publishes, and remembers what it has: a broker that lost its retained messages gets all of it again."""

    def __init__(self, topics: Topics) -> None:
        self._topics = topics
        self._retained: dict[str, bytes] = {}
        self._boot_id = secrets.token_hex(8)
        self._since = now_ms()
        self._bus: Bus | None = None
        self.api: str | None = None

    def will(self) -> Publication:
        """What the broker says of us when we are gone without goodbye."""
        return self._presence(Presence.OFFLINE)

    def birth(self) -> Sequence[Publication]:
        """What is published at every connect."""
        tasks = (Publication(topic, payload, retain=True) for topic, payload in self._retained.items())
        return [self._presence(Presence.ONLINE), *tasks]

    def open(self, bus: Bus) -> None:
        """Publish through `bus` from now on."""
        self._bus = bus

    async def guard(self, bus: Bus) -> None:
        """Keep `central/state` true until canceled: a will that covers the birth is answered with it.

        Raises:
            Displaced: A younger server is online on this broker: each topic has one writer.
        """
        topic = self._topics.path(Kind.CENTRAL_STATE)
        async with bus.subscribe(topic) as messages:
            async for message in messages:
                try:
                    heard = State.parse(message.payload) if message.payload else None
                except PayloadError as error:
                    logger.warning("topic=%s: dropped: %s", topic, error)
                    continue
                if heard is None or self._must_repeat(heard):
                    await self._send(self._presence(Presence.ONLINE))

    def _must_repeat(self, heard: State) -> bool:
        if heard.state is Presence.OFFLINE:
            return True
        if heard.boot_id != self._boot_id and (heard.since, heard.boot_id) > (self._since, self._boot_id):
            raise Displaced(
                f"topic {self._topics.path(Kind.CENTRAL_STATE)}: another central server has started on this "
                f"broker (its API: {heard.api or 'unknown'}): a broker has one, so this one ends"
            )
        return False

    async def goodbye(self) -> None:
        """Say that the server has ended as it should: after a goodbye the broker keeps the will to itself."""
        await self._send(self._presence(Presence.OFFLINE))

    async def task_state(self, task: CentralTask) -> None:
        """Publish a task's state."""
        await self._retain(self._topics.path(Kind.CENTRAL_TASK_STATE, task=task.task), task.to_bytes())

    async def round(self, task: str, round: Round) -> None:
        """Publish where a task's rounds stand."""
        await self._retain(self._topics.path(Kind.CENTRAL_TASK_ROUND, task=task), round.to_bytes())

    async def clear(self, task: str) -> None:
        """Remove a task's topics from the broker."""
        for kind in (Kind.CENTRAL_TASK_ROUND, Kind.CENTRAL_TASK_STATE):
            topic = self._topics.path(kind, task=task)
            self._retained.pop(topic, None)
            await self._send(Publication(topic, b"", retain=True))

    async def _retain(self, topic: str, payload: bytes) -> None:
        self._retained[topic] = payload
        await self._send(Publication(topic, payload, retain=True))

    async def _send(self, publication: Publication) -> None:
        if self._bus is None:
            return  # it will be among the births
        # The bus keeps what the broker has not confirmed in time: nobody need wait longer for it.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_PUBLISH_S):
                await self._bus.publish(
                    publication.topic, publication.payload, qos=publication.qos, retain=publication.retain
                )

    def _presence(self, presence: Presence) -> Publication:
        state = State(state=presence, boot_id=self._boot_id, since=self._since, api=self.api)
        return Publication(self._topics.path(Kind.CENTRAL_STATE), state.to_bytes(), retain=True)
