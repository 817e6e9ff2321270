"""Listens to the region's devices: keeps roster and store, and has their topics go up to the parent."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from regional_gateway.announcer import Announcer
from regional_gateway.outlet import Outlet
from regional_gateway.roster import Roster
from regional_gateway.store import Observations, Store
from regional_gateway.upward import Upward
from trellis.errors import PayloadError, Unavailable
from trellis.mqtt import Bus, BusMessage
from trellis.topics import Address, Kind, Topics

logger = logging.getLogger(__name__)

SAVE_EVERY_S = 0.5

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
        upward: Remembers what goes up.
    """

    def __init__(
        self,
        topics: Topics,
        region: str,
        store: Store,
        knows: Callable[[str], bool],
        upward: Upward,
    ) -> None:
        self.roster = Roster()
        self._topics, self._region, self._store, self._knows = topics, region, store, knows
        self._upward = upward
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
                if parent is not None:
                    await self._upward.send(parent, address, message.payload)
                for dropped in self._drop_pushed_out():
                    announcer.touch(dropped.task)
                    if parent is not None:
                        await self._upward.send(parent, dropped, b"")

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
            self._upward.forget(address)
            self._executions[address.device, address.task] = None
        return dropped

    def _execution(self, device: str, task: str) -> Address:
        return Address(Kind.EXECUTION, region=self._region, device=device, task=task)

    def _recall(self, address: Address, payload: bytes | None) -> None:
        try:
            self.roster.fold(address, payload or b"")
        except PayloadError as error:
            logger.warning("stored observation cannot be read device=%s: %s", address.device, error)
            return
        self._upward.note(address, payload or b"")

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
        self._upward.note(address, message.payload)
        payload = message.payload or None
        if address.kind is Kind.DEVICE_INFO:
            self._infos[address.device] = payload
        elif address.kind is Kind.EXECUTION:
            self._executions[address.device, address.task] = payload
        return address
