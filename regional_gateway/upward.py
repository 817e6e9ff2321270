"""What a gateway with two brokers carries from its region's to the one above, and says again there."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

from regional_gateway.outlet import Outlet
from trellis.mqtt import Publication
from trellis.mqtt.backoff import Backoff
from trellis.topics import Address, Kind, Topics

RETURN_S = Backoff().late_s + 15.0
"""How long devices may take to come back after their broker was away: their longest wait, and a connect."""

_PRESENCE = (Kind.DEVICE_STATE, Kind.GATEWAY_STATE)


class Upward:
    """What stands on the parent's broker of others than the gateway itself: devices, and regions below.

    Args:
        topics: The fleet's topics.
        keeps: Whether nobody above asks for an execution, because a region on the way up averages its task.
    """

    def __init__(self, topics: Topics, keeps: Callable[[Address], bool] = lambda _: False) -> None:
        self._topics, self._keeps = topics, keeps
        self._payloads: dict[str, bytes] = {}
        self._present: set[str] = set()

    @property
    def standing(self) -> tuple[str, ...]:
        """The topics on which something was said."""
        return tuple(self._payloads)

    def note(self, address: Address, payload: bytes) -> bool:
        """Remember what was said, until an empty payload removes it; return whether that was news."""
        topic = self._topics.render(address)
        self._present.add(topic)
        if self._payloads.get(topic, b"") == payload:
            return False
        if payload:
            self._payloads[topic] = payload
        else:
            del self._payloads[topic]
        return True

    def forget(self, address: Address) -> None:
        """Remember no more what was said there."""
        self._payloads.pop(self._topics.render(address), None)

    def forget_presence(self) -> None:
        """Know of nobody whether it is there, until it is heard again: the region's broker was away."""
        self._present.clear()

    async def send(self, parent: Outlet, address: Address, payload: bytes) -> None:
        """Say it on the parent's broker, if anybody there asks for it."""
        # What is removed may stand there of a revision that the region relayed.
        if address.kind is not Kind.EXECUTION or not payload or not self._keeps(address):
            await parent.send(Publication(self._topics.render(address), payload, retain=True))

    async def remove(self, parent: Outlet, region: str, task: str) -> None:
        """Remove from the parent's broker all that was carried there of a task in a region below."""
        for address in map(self._topics.parse, self.standing):
            if (address.region, address.task) == (region, task):
                self.forget(address)
                await self.send(parent, address, b"")

    async def repeat(self, parent: Outlet, reconnected: asyncio.Event) -> None:
        """Say all of it again on the parent's broker after each of its connects, until cancelled."""
        while True:
            await reconnected.wait()
            reconnected.clear()
            for topic, payload in list(self._payloads.items()):
                # What has changed meanwhile was sent as it came, and this must not cover it.
                if self._payloads.get(topic) == payload:
                    await self.send(parent, self._topics.parse(topic), payload)

    async def clear_lost(self, parent: Outlet, reconnected: asyncio.Event) -> None:
        """Remove from the parent's broker the state of whoever did not come back, until cancelled.

        Who dies while the region's broker is away leaves no will behind.
        """
        while True:
            await reconnected.wait()
            # Each connect begins with nobody there, so that from each everybody has the whole time.
            while reconnected.is_set():
                reconnected.clear()
                with suppress(TimeoutError):
                    await asyncio.wait_for(reconnected.wait(), RETURN_S)
            for topic in self.standing:
                address = self._topics.parse(topic)
                if address.kind in _PRESENCE and topic not in self._present:
                    self.forget(address)
                    await self.send(parent, address, b"")
