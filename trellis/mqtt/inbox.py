"""Deliveries between the broker and a consumer."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Self

from trellis.errors import TrellisError
from trellis.mqtt.filters import match
from trellis.mqtt.messages import BusMessage

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Delivery:
    """A message and the quality of service that it came with."""

    message: BusMessage
    qos: int


class Subscription(AsyncIterator[BusMessage]):
    """The messages of one subscription, in order of arrival.

    Attributes:
        dropped: Messages lost because the consumer fell behind.
    """

    def __init__(self, filters: tuple[str, ...], capacity: int) -> None:
        self.filters = filters
        self.dropped = 0
        self._capacity = capacity
        self._waiting: deque[Delivery] = deque()
        self._news = asyncio.Event()
        self._closed = False
        self._error: TrellisError | None = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> BusMessage:
        while not self._waiting:
            if self._error is not None:
                raise self._error
            if self._closed:
                raise StopAsyncIteration
            self._news.clear()
            await self._news.wait()
        return self._waiting.popleft().message

    def wants(self, topic: str) -> bool:
        return any(match(filter, topic) for filter in self.filters)

    def deliver(self, delivery: Delivery) -> None:
        """Queue `delivery`; when full, the oldest QoS 0 one goes, or else the oldest."""
        if len(self._waiting) >= self._capacity:
            self._drop()
        self._waiting.append(delivery)
        self._news.set()

    def fail(self, error: TrellisError) -> None:
        """Let the consumer have what is queued, and then `error`."""
        self._error = error
        self._news.set()

    def close(self) -> None:
        """Let the consumer have what is queued, and then the end."""
        self._closed = True
        self._news.set()

    def _drop(self) -> None:
        index = next((i for i, delivery in enumerate(self._waiting) if delivery.qos == 0), 0)
        del self._waiting[index]
        self.dropped += 1
        if self.dropped == 1 or self.dropped % 1000 == 0:
            logger.warning(
                "subscription falls behind: %d messages dropped filters=%s",
                self.dropped,
                ",".join(self.filters),
            )
