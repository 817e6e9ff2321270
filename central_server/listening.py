"""Brings what gateways say on MQTT into the server's picture of them."""

from __future__ import annotations

import logging

from trellis.errors import PayloadError
from trellis.mqtt import Bus
from trellis.payloads import State
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
