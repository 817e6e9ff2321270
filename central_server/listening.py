"""Brings what devices and gateways say on MQTT into the server's picture of them."""

from __future__ import annotations

import logging

from central_server.fleet import TaskFleet
from trellis.errors import PayloadError
from trellis.mqtt import Bus, BusMessage
from trellis.payloads import Execution, State
from trellis.topics import Kind, Topics

logger = logging.getLogger(__name__)


class Gateways:
    """The gateways by region, as their state topics show them."""

    def __init__(self) -> None:
        self._states: dict[str, State] = {}

    @property
    def states(self) -> dict[str, State]:
        """The last state of each gateway, by region in order."""
        return dict(sorted(self._states.items()))

    async def listen(self, bus: Bus, topics: Topics) -> None:
        """Follow the gateways' topics until canceled."""
        async with bus.subscribe(topics.filter(Kind.GATEWAY_STATE)) as messages:
            async for message in messages:
                try:
                    region = topics.parse(message.topic).region
                    if message.payload:
                        self._states[region] = State.parse(message.payload)
                    else:
                        self._states.pop(region, None)
                except PayloadError as error:
                    logger.warning("topic=%s: dropped: %s", message.topic, error)


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
