"""Brings what a task's members say on MQTT into its fleet."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable

from trellis.errors import PayloadError
from trellis.mqtt import Bus, BusMessage
from trellis.payloads import Execution, State
from trellis.tier.fleet import TaskFleet
from trellis.topics import Kind, Topics

logger = logging.getLogger(__name__)

_LOOK_S = 1.0


async def follow_fleet(bus: Bus, topics: Topics, fleet: TaskFleet) -> None:
    """Feed `fleet` from its regions' topics until canceled.

    Each task has a subscription of its own, so that the broker sends what it has retained when the task
    comes, and nobody need keep what devices say of tasks that this server does not have.
    """
    filters = [topics.filter(Kind.GATEWAY_STATE, region=region) for region in sorted(fleet.regions)]
    for region in sorted(fleet.regions - {fleet.here}):
        if region in fleet.regional:
            filters.append(topics.filter(Kind.GATEWAY_EXECUTION, region=region, task=fleet.task))
    # Devices of a region that aggregates are nobody's members but its own: they need not be heard elsewhere.
    for region in sorted(fleet.regions - (fleet.regional - {fleet.here})):
        filters.append(topics.filter(Kind.DEVICE_STATE, region=region))
        filters.append(topics.filter(Kind.EXECUTION, region=region, task=fleet.task))
    async with bus.subscribe(*filters) as messages:
        async for message in messages:
            try:
                _fold(message, topics, fleet)
            except PayloadError as error:
                logger.warning("task=%s topic=%s: dropped: %s", fleet.task, message.topic, error)


async def watch_broker(bus: Bus, fleets: Callable[[], Iterable[TaskFleet]]) -> None:
    """Have the apps of all tasks know when nothing can be heard of their members, until canceled."""
    while True:
        for fleet in fleets():
            fleet.see(blind=not bus.connected)
        await asyncio.sleep(_LOOK_S)


def _fold(message: BusMessage, topics: Topics, fleet: TaskFleet) -> None:
    address = topics.parse(message.topic)
    match address.kind:
        case Kind.DEVICE_STATE | Kind.GATEWAY_STATE:
            state = State.parse(message.payload) if message.payload else None
            if address.kind is Kind.DEVICE_STATE:
                fleet.device_state(address.region, address.device, state)
            else:
                fleet.gateway_state(address.region, state)
        case Kind.EXECUTION | Kind.GATEWAY_EXECUTION if address.task == fleet.task:
            execution = Execution.parse(message.payload) if message.payload else None
            if address.kind is Kind.EXECUTION:
                fleet.execution(address.region, address.device, execution)
            else:
                fleet.gateway_execution(address.region, execution)
