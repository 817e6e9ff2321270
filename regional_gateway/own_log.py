"""What a gateway says about tasks on its log topics: how it supervises them, and what their apps log."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator

from regional_gateway.log_carrying import LogCarrier
from regional_gateway.region_app.telling_log import LOGGED
from trellis.mqtt import Bus, Publication
from trellis.task_log import LineHandler, TaskLines, told_of
from trellis.topics import Kind, Topics


class OwnLog(LineHandler):
    """Publishes the gateway's lines that name a task, `task=NAME`, tracebacks included.

    Args:
        topics: The fleet's topics.
        region: This region.
        carrier: Brings them up where the parent's broker is another, and its own may be away.
    """

    def __init__(self, topics: Topics, region: str, carrier: LogCarrier) -> None:
        super().__init__()
        self._topics, self._region, self._carrier = topics, region, carrier
        self._lines: TaskLines | None = None
        self._bus: Bus | None = None
        self._carries = False

    @contextlib.asynccontextmanager
    async def speaking(self, bus: Bus, *, carries: bool) -> AsyncIterator[None]:
        """Publish on the region's broker, and have the lines carried up if it `carries`."""
        self._bus, self._carries = bus, carries
        self._lines = TaskLines(self, self._topic)
        async with asyncio.TaskGroup() as group:
            sender = group.create_task(self._lines.run(), name="own log lines")
            for name in LOGGED:
                logging.getLogger(name).addHandler(self)
            try:
                yield
            finally:
                for name in LOGGED:
                    logging.getLogger(name).removeHandler(self)
                self._lines = None
                sender.cancel()

    def hand_on(self, record: logging.LogRecord) -> None:
        """Publish `record` if it names a task."""
        lines = self._lines
        if lines is not None and (said := told_of(record)) is not None:
            lines.say(*said)

    async def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> None:
        """Say a line in the region, and above."""
        if self._carries:
            line = Publication(topic, payload, qos=qos, retain=retain)
            self._carrier.put(self._topics.parse(topic), line)
        if self._bus is not None:
            await self._bus.publish(topic, payload, qos=qos, retain=retain)

    def _topic(self, task: str) -> str:
        return self._topics.path(Kind.GATEWAY_LOG, region=self._region, task=task)
