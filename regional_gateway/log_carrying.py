"""What devices and the gateways below say about tasks, on its way up to the broker above: paced, and bounded.

Log lines come by the thousand where something is wrong, which is when states and executions matter most. So
they do not share the way of those: they have a subscription and a queue of their own, leave one by one, and
no faster than `BYTES_A_SECOND`.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections import OrderedDict

from regional_gateway.ledger import Ledger
from regional_gateway.log_queue import LogQueue, size_bytes
from regional_gateway.nested import Nested
from trellis.errors import PayloadError, Refused
from trellis.mqtt import Bus, BusMessage, Publication
from trellis.mqtt.backoff import Backoff
from trellis.payloads import Log
from trellis.task_log import LINE_BYTES, Dropped
from trellis.topics import Address, Kind, Topics

logger = logging.getLogger(__name__)

BYTES_A_SECOND = 256 * 1024
WAITING_BYTES = 4 * 1024 * 1024
"""What waits while the parent's broker is away, or behind a flood; beyond it some are left out."""

_SENT = 8192
"""Lines sent that are known again: half a minute of them, while what comes back does so at once."""
_MANY = 10
_TELL_EVERY_S = 10.0
_LOOK_S = 0.5
_CONNECT_S = 2.0


class LogCarrier:
    """The lines that wait to go up.

    Args:
        topics: The fleet's topics.
        region: This region.
        ledger: The tasks that it knows: of others nothing is carried, since names are free.
        nested: The regions below it.
    """

    def __init__(self, topics: Topics, region: str, ledger: Ledger, nested: Nested) -> None:
        self._topics, self._region, self._ledger, self._nested = topics, region, ledger, nested
        self._waiting = LogQueue(WAITING_BYTES)
        self._dropped = Dropped()
        self._news = asyncio.Event()
        self._sent = _Sent()
        self._seen, self._ready, self._connects = time.monotonic(), 0.0, 0

    async def carry(self, region: Bus, parent: Bus) -> None:
        """Bring up what devices and the gateways below say on the region's broker, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._listen(region), name="hear logs")
            group.create_task(self._bring_up(parent), name="bring up logs")
            group.create_task(self._watch(parent), name="see the parent's broker")

    def parent_connects(self) -> None:
        """Wait until the server is back as well, which had lost the parent's broker for as long as we had."""
        now = time.monotonic()
        away_s, self._connects = now - self._seen, self._connects + 1
        # At QoS 0 lines are lost that nobody hears. That a gateway starts says nothing of the others.
        if self._connects > 1 or away_s > _CONNECT_S:
            self._ready = now + Backoff().most_s(away_s) + _CONNECT_S

    async def _watch(self, parent: Bus) -> None:
        while True:
            if parent.connected:
                self._seen = time.monotonic()
            await asyncio.sleep(_LOOK_S)

    async def _listen(self, bus: Bus) -> None:
        try:
            await self._hear(bus)
        except Refused as error:
            # Some brokers say at once what their ACL denies. Lines are not worth the rest of the gateway.
            logger.warning(
                "log lines of devices and of regions below are not brought up: %s; "
                "`trellis keys acl` writes lists that allow it; then start the gateway again",
                error,
            )

    async def _hear(self, bus: Bus) -> None:
        filters = [self._topics.filter(kind) for kind in (Kind.LOG, Kind.GATEWAY_LOG)]
        async with bus.subscribe(*filters) as messages:
            async for message in messages:
                # Nobody retains lines; one that is comes again with each connect.
                if message.retain or self._sent.knows(message):
                    continue
                if (address := self._address(message)) is not None:
                    self.put(address, Publication(message.topic, message.payload, qos=0))

    def put(self, address: Address, line: Publication) -> None:
        """Have a line brought up; some are left out where there is no room."""
        self._waiting.put(address, line)
        self._news.set()

    async def _bring_up(self, parent: Bus) -> None:
        told = time.monotonic()
        while True:
            await self._news.wait()
            while self._waiting:
                while not parent.connected or time.monotonic() < self._ready:  # noqa: ASYNC110 - no event says so
                    await asyncio.sleep(_LOOK_S)
                line = self._waiting.take()
                self._sent.note(line)
                await parent.publish(line.topic, line.payload, qos=line.qos, retain=line.retain)
                await asyncio.sleep(size_bytes(line) / BYTES_A_SECOND)
                if self._waiting.left_out and (not self._waiting or time.monotonic() - told >= _TELL_EVERY_S):
                    told = time.monotonic()
                    self._tell()
            self._news.clear()

    def _tell(self) -> None:
        left_out = dict(self._waiting.left_out)
        self._waiting.left_out.clear()
        for task, lines in left_out.items():
            logger.warning("task=%s: %d log lines are left out above: too many at once", task, lines)

    def _address(self, message: BusMessage) -> Address | None:
        try:
            address = self._topics.parse(message.topic)
            if address.kind is Kind.GATEWAY_LOG and address.region == self._region:
                return None  # its own it puts here itself: the region's broker may be away
            if not (message.payload and self._ledger.get(address.task) and self._nested.path(address.region)):
                return None
            _check(message.payload)
        except PayloadError as error:
            if count := self._dropped.one_more():
                logger.warning(
                    "topic=%s: dropped, %d since this was last told: %s", message.topic[:200], count, error
                )
            return None
        return address


class _Sent:
    """The lines last sent up, to be known where they come back: without end, if nobody stopped them."""

    def __init__(self) -> None:
        self._came_back: OrderedDict[bytes, bool] = OrderedDict()
        self._lines = self._returns = 0
        self._told = False

    def note(self, line: Publication) -> None:
        """Remember a line that is being sent."""
        self._lines += 1
        self._came_back[_digest(line)] = False
        if len(self._came_back) > _SENT:
            self._came_back.popitem(last=False)

    def knows(self, message: BusMessage) -> bool:
        """Whether this is one of them."""
        digest = _digest(message)
        before = self._came_back.get(digest)
        if before is None:
            return False
        if not before:
            self._came_back[digest] = True
            self._returns += 1
            self._tell()
        return True

    def _tell(self) -> None:
        # A device may say the same twice in one millisecond; that a good part comes back has another reason.
        if self._told or self._returns < _MANY or self._returns < self._lines / 2:
            return
        self._told = True
        logger.warning(
            "log lines that were sent to the broker above come back on the region's: the two are one, "
            "or bridged; where they are one, give --broker and --parent-broker the same URL"
        )


def _check(payload: bytes) -> None:
    """See that this is a log line.

    Raises:
        PayloadError: It is none, or longer than one.
    """
    if len(payload) > LINE_BYTES:
        raise PayloadError("Log payload", f"has {len(payload)} bytes, at most {LINE_BYTES}")
    Log.parse(payload)


def _digest(line: Publication | BusMessage) -> bytes:
    digest = hashlib.blake2b(line.topic.encode(), digest_size=16)
    digest.update(b"\0" + line.payload)
    return digest.digest()
