"""Brings what a task's devices say on MQTT into its fleet."""

from __future__ import annotations

import logging

from trellis.errors import PayloadError
from trellis.mqtt import Bus, BusMessage
from trellis.payloads import Execution, State
from trellis.tier.fleet import TaskFleet
from trellis.topics import Kind, Topics

logger = logging.getLogger(__name__)


async def follow_fleet(bus: Bus, topics: Topics, fleet: TaskFleet) -> None:
    """Feed `fleet` from its regions' topics until canceled.

    Each task has a subscription of its own, so that the broker sends what it has retained when the task
    comes, and nobody need keep what devices say of tasks that this server does not have.
    """
    filters = [
        topic
        for region in sorted(fleet.regions)
        for topic in (
            topics.filter(Kind.DEVICE_STATE, region=region),
            topics.filter(Kind.EXECUTION, region=region, task=fleet.task),
        )
    ]
    async with bus.subscribe(*filters) as messages:
        async for message in messages:
            try:
                _fold(message, topics, fleet)
            except PayloadError as error:
                logger.warning("task=%s topic=%s: dropped: %s", fleet.task, message.topic, error)


def _fold(message: BusMessage, topics: Topics, fleet: TaskFleet) -> None:
    address = topics.parse(message.topic)
    if address.kind is Kind.DEVICE_STATE:
        state = State.parse(message.payload) if message.payload else None
        fleet.device_state(address.region, address.device, state)
    elif address.kind is Kind.EXECUTION and address.task == fleet.task:
        execution = Execution.parse(message.payload) if message.payload else None
        fleet.execution(address.region, address.device, execution)
