"""One connection to a broker, as the bus sees it: MQTT's own, and the one in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from trellis.mqtt.inbox import Delivery
from trellis.mqtt.messages import Publication


class ConnectionLost(Exception):
    """There is no connection, or no longer; the text says why."""


class Session(Protocol):
    """An open connection.

    Every call raises `ConnectionLost` when the connection is gone, and waits for seconds at most.
    """

    async def publish(self, publication: Publication) -> None:
        """Return when the broker has it (QoS 1), or when it is written (QoS 0)."""

    async def subscribe(self, filters: Sequence[str]) -> Sequence[str]:
        """Return which of `filters` the broker denies."""

    async def unsubscribe(self, filters: Sequence[str]) -> None: ...

    def deliveries(self) -> AsyncIterator[Delivery]:
        """Yield what comes, until the connection is lost."""

    def abandon(self) -> None:
        """Close the connection without a goodbye, so that the broker says the will."""


class Dialer(Protocol):
    """Opens connections to one broker under one client id, with a will."""

    @property
    def url(self) -> str: ...

    @property
    def client_id(self) -> str: ...

    def connect(self) -> AbstractAsyncContextManager[Session]:
        """Open a connection; leaving it says goodbye.

        Raises:
            ConnectionLost: Not now; worth another try.
            ConfigError: Our files, or the broker's certificate, are wrong.
            Refused: The broker does not want us.
        """
