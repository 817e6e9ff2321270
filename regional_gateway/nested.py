"""The regions below this one, at any depth: which they are, and what of them goes up to the broker above."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable

from regional_gateway.ledger import Ledger
from regional_gateway.outlet import Outlet
from regional_gateway.upward import Upward
from trellis.errors import PayloadError
from trellis.keys.principals import Principal
from trellis.mqtt import Bus, BusMessage
from trellis.payloads import State
from trellis.topics import Kind, Topics

logger = logging.getLogger(__name__)

_OF_REGION = (Kind.GATEWAY_STATE, Kind.DEVICE_STATE, Kind.DEVICE_INFO)
_OF_TASK = (Kind.GATEWAY_EXECUTION, Kind.TASK_STATUS, Kind.TASK_ROUND, Kind.EXECUTION)


class Nested:
    """The regions whose gateways' `parent` leads up to this one.

    Args:
        topics: The fleet's topics.
        region: This region.
        ledger: The tasks that it knows: of others nothing is carried, since names are free.
    """

    def __init__(self, topics: Topics, region: str, ledger: Ledger) -> None:
        self._topics, self._region, self._ledger = topics, region, ledger
        self._parents: dict[str, str] = {}
        self._news = asyncio.Event()
        ledger.watch(lambda _: self._news.set())

    def path(self, region: str) -> list[str]:
        """Return the regions from this one's child, or itself, down to `region`; empty if it is not below."""
        path = [region]
        while path[-1] != self._region:
            above = self._parents.get(path[-1])
            if above is None or above in path:
                return []
            path.append(above)
        return path

    def admits(self, principal: Principal | None) -> bool:
        """Whether somebody belongs to this region, or to one below it."""
        return principal is not None and bool(principal.region) and bool(self.path(principal.region))

    async def learn(self, bus: Bus) -> None:
        """Hear on the region's broker who stands below whom, until cancelled."""
        async with bus.subscribe(self._topics.filter(Kind.GATEWAY_STATE)) as messages:
            async for message in messages:
                try:
                    region = self._topics.parse(message.topic).region
                    state = State.parse(message.payload) if message.payload else None
                except PayloadError as error:
                    _drop(message, error)
                    continue
                # One that has gone keeps its place: its devices are there, and it will be back.
                if state is not None and state.parent is not None and region != self._region:
                    self._parents[region] = state.parent
                    self._news.set()

    async def carry(self, bus: Bus, upward: Upward, parent: Outlet) -> None:
        """Bring up what the regions below say, and what their devices say, until cancelled."""
        working: dict[tuple[str, str], asyncio.Task[None]] = {}
        async with asyncio.TaskGroup() as group:
            while True:
                self._news.clear()
                tasks = {record.task for record in self._ledger.live()}
                below = {region for region in self._parents if self.path(region)}
                due = {(region, task) for region in below for task in ("", *tasks)}
                for region, task in sorted(working.keys() - due):
                    working.pop((region, task)).cancel()
                    if task and task not in tasks:
                        await upward.remove(parent, region, task)
                for region, task in sorted(due - working.keys()):
                    filters = self._filters(region, task)
                    name = f"carry {region} {task}"
                    working[region, task] = group.create_task(
                        self._carry(filters, bus, upward, parent), name=name
                    )
                await self._news.wait()

    def _filters(self, region: str, task: str) -> list[str]:
        """Return what a region says of a task, or of itself if that is empty.

        Each task has a subscription of its own: the broker then sends what it has retained of it.
        """
        kinds = _OF_TASK if task else _OF_REGION
        return [self._topics.filter(kind, region=region, task=task or "+") for kind in kinds]

    async def _carry(self, filters: Iterable[str], bus: Bus, upward: Upward, parent: Outlet) -> None:
        async with bus.subscribe(*filters) as messages:
            async for message in messages:
                try:
                    address = self._topics.parse(message.topic)
                except PayloadError as error:
                    _drop(message, error)
                    continue
                if upward.note(address, message.payload):
                    await upward.send(parent, address, message.payload)


def _drop(message: BusMessage, error: PayloadError) -> None:
    logger.warning("dropped what came on topic=%s: %s", message.topic[:200], error)
