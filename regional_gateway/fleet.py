"""Listens to the region's devices: keeps roster and store, and carries their topics up to the parent."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from regional_gateway.announcer import Announcer
from regional_gateway.outlet import Outlet
from regional_gateway.roster import Roster
from regional_gateway.store import Observations, Store
from trellis.errors import PayloadError, Unavailable
from trellis.mqtt import Bus, BusMessage, Publication
from trellis.topics import Address, Kind, Topics

logger = logging.getLogger(__name__)

SAVE_EVERY_S = 0.5

RETURN_S = 30.0
"""How long devices may take to come back after their broker was away; their waits go up to 10 s."""

_KINDS = (Kind.DEVICE_STATE, Kind.DEVICE_INFO, Kind.EXECUTION)


class Fleet:
    """The roster, and what of it is yet to be written.

    Presence is not stored: who is there is what the broker says now. What a device makes of a task that
    was never posted here is dropped: names are free, and it could think up any number of them.

    Args:
        topics: The region's topics.
        region: Its name.
        store: Where it is remembered.
        knows: Whether a task was posted here.
        keeps: Whether the region averages a task itself: then nobody above asks for its executions.
    """

    def __init__(
        self,
        topics: Topics,
        region: str,
        store: Store,
        knows: Callable[[str], bool],
        keeps: Callable[[str], bool] = lambda _: False,
    ) -> None:
        self.roster = Roster()
        self._topics, self._region, self._store, self._knows = topics, region, store, knows
        self._keeps = keeps
        self._payloads: dict[str, bytes] = {}  # by topic: what stands on the parent's broker
        self._infos: dict[str, bytes | None] = {}
        self._executions: dict[tuple[str, str], bytes | None] = {}

    async def load(self) -> None:
        """Take up what devices last said before this process began."""
        known = await self._store.observations()
        for device, info in known.infos.items():
            self._recall(Address(Kind.DEVICE_INFO, region=self._region, device=device), info)
        for (device, task), payload in known.executions.items():
            if self._knows(task):
                self._recall(self._execution(device, task), payload)
            else:
                self._executions[device, task] = None
        self._drop_pushed_out()

    async def listen(self, bus: Bus, announcer: Announcer, parent: Outlet | None) -> None:
        """Fold in what devices say, until cancelled."""
        filters = [self._topics.filter(kind, region=self._region) for kind in _KINDS]
        async with bus.subscribe(*filters) as messages:
            async for message in messages:
                address = self._fold(message)
                if address is None:
                    continue
                if address.kind is Kind.EXECUTION:
                    announcer.touch(address.task)
                if parent is not None and self._goes_up(address, message.payload):
                    await parent.send(Publication(message.topic, message.payload, retain=True))
                for dropped in self._drop_pushed_out():
                    announcer.touch(dropped.task)
                    if parent is not None:
                        await parent.send(Publication(self._topics.render(dropped), b"", retain=True))

    async def repeat(self, parent: Outlet, reconnected: asyncio.Event) -> None:
        """Say all of it again on the parent's broker after each of its connects, until cancelled."""
        while True:
            await reconnected.wait()
            reconnected.clear()
            for topic, payload in list(self._payloads.items()):
                # What has changed meanwhile was sent by `listen`, and this must not cover it.
                goes_up = self._goes_up(self._topics.parse(topic), payload)
                if goes_up and self._payloads.get(topic) == payload:
                    await parent.send(Publication(topic, payload, retain=True))

    async def clear_lost(self, parent: Outlet, reconnected: asyncio.Event) -> None:
        """Remove from the parent's broker the state of devices that did not come back, until cancelled.

        A device that dies while the region's broker is away leaves no will behind.
        """
        while True:
            await reconnected.wait()
            reconnected.clear()
            await asyncio.sleep(RETURN_S)
            for topic in list(self._payloads):
                address = self._topics.parse(topic)
                if address.kind is Kind.DEVICE_STATE and not self.roster.hears(address.device):
                    del self._payloads[topic]
                    await parent.send(Publication(topic, b"", retain=True))

    async def keep_saving(self) -> None:
        """Write what has changed, some of it at a time, until cancelled."""
        while True:
            await asyncio.sleep(SAVE_EVERY_S)
            try:
                await self.save()
            except Unavailable as error:
                logger.error("what devices say is not stored: %s", error)

    async def save(self) -> None:
        """Return once everything heard is on disk.

        Raises:
            Unavailable: The disk fails; nothing is forgotten.
        """
        changes = Observations(self._infos, self._executions)
        if not changes.infos and not changes.executions:
            return
        self._infos, self._executions = {}, {}
        try:
            await self._store.save_observations(changes)
        except BaseException:
            self._infos = {**changes.infos, **self._infos}
            self._executions = {**changes.executions, **self._executions}
            raise

    def _drop_pushed_out(self) -> list[Address]:
        """Forget what the roster has no room for; return where it was said."""
        dropped = [self._execution(device, task) for device, task in self.roster.take_pushed_out()]
        for address in dropped:
            self._payloads.pop(self._topics.render(address), None)
            self._executions[address.device, address.task] = None
        return dropped

    def _goes_up(self, address: Address, payload: bytes) -> bool:
        # What is removed may stand there of a revision that the region relayed.
        return address.kind is not Kind.EXECUTION or not payload or not self._keeps(address.task)

    def _execution(self, device: str, task: str) -> Address:
        return Address(Kind.EXECUTION, region=self._region, device=device, task=task)

    def _recall(self, address: Address, payload: bytes | None) -> None:
        try:
            self.roster.fold(address, payload or b"")
        except PayloadError as error:
            logger.warning("stored observation cannot be read device=%s: %s", address.device, error)
            return
        self._payloads[self._topics.render(address)] = payload or b""

    def _fold(self, message: BusMessage) -> Address | None:
        try:
            address = self._topics.parse(message.topic)
            if message.payload and address.task and not self._knows(address.task):
                logger.debug("dropped an execution of an unknown task topic=%s", message.topic)
                return None
            if not self.roster.fold(address, message.payload):
                return None
        except PayloadError as error:
            logger.warning("dropped what came on topic=%s: %s", message.topic[:200], error)
            return None
        payload = message.payload or None
        if payload is None:
            self._payloads.pop(message.topic, None)
        else:
            self._payloads[message.topic] = payload
        if address.kind is Kind.DEVICE_INFO:
            self._infos[address.device] = payload
        elif address.kind is Kind.EXECUTION:
            self._executions[address.device, address.task] = payload
        return address
