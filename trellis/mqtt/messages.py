"""What goes over the bus, and what a bus promises."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol, Self

from trellis.errors import PayloadError


@dataclass(frozen=True)
class BusMessage:
    """One message that matched a subscription; `retain` says that the broker had kept it."""

    topic: str
    payload: bytes
    retain: bool


@dataclass(frozen=True)
class Publication:
    """One message to publish; an empty retained payload removes what is retained."""

    topic: str
    payload: bytes
    qos: int = 1
    retain: bool = False

    def __post_init__(self) -> None:
        if self.qos not in (0, 1):
            raise PayloadError(f"publication to {self.topic!r}", f"QoS is {self.qos}, must be 0 or 1")


Birth = Sequence[Publication] | Callable[[], Sequence[Publication]]
"""What is published at every connect, before anything queued; a callable is asked anew each time."""


class Bus(Protocol):
    """One client of one broker, which stays connected as long as the context is open.

    Entering connects in the background and does not fail because the broker is down. Leaving sends
    what is queued if it is connected (for at most two seconds), says goodbye, and ends every
    subscription's iteration; the will fires only where there was no goodbye.
    """

    @property
    def connected(self) -> bool:
        """Whether the broker has accepted us, our births and our subscriptions."""

    @property
    def dropped(self) -> int:
        """Publications lost because the queue was full while the broker was away."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, *_: object) -> None: ...

    async def wait_connected(self, timeout_s: float) -> None:
        """Return once connected.

        Raises:
            Unavailable: Nobody answered in time.
            ConfigError: The broker's certificate or our key files are wrong; raised at once.
            Refused: The broker does not want us (code `broker`); raised at once.
        """

    async def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> None:
        """Return when the broker has it, or when it is queued because the broker is away.

        At QoS 1 it is then sent after the reconnect, in order, and of retained ones only the last of
        each topic. A full queue drops its oldest that is not retained. At QoS 0 it is lost while the
        broker is away. With MQTT 3.1.1 a broker tells nobody that an ACL has denied a publication.

        Raises:
            PayloadError: The topic is none.
            Unavailable: The bus is not open.
        """

    def subscribe(self, *filters: str) -> AbstractAsyncContextManager[AsyncIterator[BusMessage]]:
        """Deliver what matches any of `filters`, once for each message that the broker sends.

        Retained messages come also where another subscription has the same filter (which may then see
        them twice), and again after each reconnect; QoS 1 may repeat: consumers are idempotent. A
        queue of bounded length is between: when the consumer falls behind by more, the oldest QoS 0
        message goes, or the oldest of all if there is none. It is logged, and counted in the
        iterator's `dropped`.

        Raises:
            PayloadError: A filter is none.
            Refused: The broker denies a filter (code `broker`); on entering, or, if that was while
                the broker was away, from the iteration.
            Unavailable: The bus is not open.
        """
