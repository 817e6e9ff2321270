"""The bus over any kind of connection: queues, and connects again as often as it must."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Self

from trellis.errors import ConfigError, Refused, TrellisError, Unavailable
from trellis.mqtt.backoff import Backoff
from trellis.mqtt.filters import check_filter, check_topic
from trellis.mqtt.inbox import Subscription
from trellis.mqtt.messages import Birth, BusMessage, Publication
from trellis.mqtt.outbox import Entry, Outbox
from trellis.mqtt.session import ConnectionLost, Dialer, Session

logger = logging.getLogger(__name__)

IN_FLIGHT = 20
"""Publications sent and not yet acknowledged; also what paho keeps in flight.

Each has its task: tasks start in the order of their making, so publications leave in order.
"""

STABLE_S = 10.0
"""A connection that held for so long was a good one: the next wait is short again."""

FLUSH_S = 2.0


@dataclass(frozen=True)
class Limits:
    """Lengths of the queues, in messages."""

    outgoing: int = 1000
    incoming: int = 4096


FLEET = Limits(incoming=65_536)
"""For who subscribes to a region or more: after a connect all that its devices retain comes at once: state,
info and executions of each. What does not fit is lost: QoS 1 counts it as delivered, and it does not come
again before the next connect.
"""


class ReconnectingBus:
    """A `Bus` over the connections of a dialer.

    After a connection is lost, or was refused for good, it tries again for as long as it is open: a
    fleet must come back by itself once its broker is mended. `wait_connected` tells which it is.
    """

    def __init__(
        self,
        dialer: Dialer,
        *,
        birth: Birth = (),
        backoff: Backoff | None = None,
        limits: Limits | None = None,
    ) -> None:
        self._dialer = dialer
        self._birth = birth
        self._backoff = backoff or Backoff()
        self._limits = limits or Limits()
        self._outbox = Outbox(self._limits.outgoing)
        self._outgoing = asyncio.Event()
        self._subscriptions: list[Subscription] = []
        self._session: Session | None = None
        self._changed = asyncio.Event()
        self._failure: TrellisError | None = None
        self._reason = "no connection was tried yet"
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        if self._task is not None:
            raise Unavailable(f"{self._who()}: this bus was opened before; make a new one")
        self._task = asyncio.create_task(self._run(), name=f"mqtt {self._dialer.client_id}")
        self._task.add_done_callback(self._ended)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is None:
            return
        try:
            await self._flush()
        finally:
            self._task.cancel()
            await asyncio.wait([self._task])
            for subscription in self._subscriptions:
                subscription.close()

    @property
    def connected(self) -> bool:
        return self._session is not None

    @property
    def dropped(self) -> int:
        return self._outbox.dropped

    async def wait_connected(self, timeout_s: float) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                while self._session is None:
                    if self._failure is not None:
                        raise self._failure
                    self._check_open()
                    await self._changed.wait()
        except TimeoutError:
            raise Unavailable(
                f"{self._who()}: no connection within {timeout_s:g} s: {self._reason}; "
                "start a broker with `trellis broker`, or name another one"
            ) from None

    async def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> None:
        self._check_open()
        publication = Publication(check_topic(topic), payload, qos, retain)
        session = self._session
        if qos == 0:
            if session is not None:
                with contextlib.suppress(ConnectionLost):
                    await session.publish(publication)
            return
        entry, lost = self._outbox.put(publication)
        if lost is not None and (self.dropped == 1 or self.dropped % 1000 == 0):
            logger.warning(
                "%s: queue full: %d publications dropped, now %s", self._who(), self.dropped, lost.topic
            )
        self._outgoing.set()
        if session is not None:
            await entry.settled.wait()

    @contextlib.asynccontextmanager
    async def subscribe(self, *filters: str) -> AsyncIterator[AsyncIterator[BusMessage]]:
        self._check_open()
        wanted = tuple(dict.fromkeys(check_filter(filter) for filter in filters))
        subscription = Subscription(wanted, self._limits.incoming)
        self._subscriptions.append(subscription)
        try:
            if self._session is not None:
                # Where the connection is lost meanwhile, the next one subscribes.
                with contextlib.suppress(ConnectionLost):
                    if denied := await self._session.subscribe(wanted):
                        raise self._denial(denied)
            yield subscription
        finally:
            subscription.close()
            self._subscriptions.remove(subscription)
            kept = {filter for other in self._subscriptions for filter in other.filters}
            unused = [filter for filter in wanted if filter not in kept]
            if self._session is not None and unused:
                with contextlib.suppress(ConnectionLost):
                    await self._session.unsubscribe(unused)

    async def _run(self) -> None:
        clock = asyncio.get_running_loop().time
        held, wait_s = clock(), 0.0
        while not self._canceled():
            came: float | None = None
            try:
                async with self._dialer.connect() as session:
                    came = clock()
                    await self._serve(session)
            except ConnectionLost as lost:
                self._note(str(lost), None)
            except (ConfigError, Refused) as error:
                self._note(str(error), error)
            # A second client with our id makes the broker cut us again and again: as none of those
            # connections holds, the waits between them grow.
            if came is not None and clock() - came >= STABLE_S:
                held, wait_s = clock(), 0.0
            if not self._canceled():
                wait_s = self._backoff.wait_s(wait_s, clock() - held)
                await asyncio.sleep(wait_s)

    def _canceled(self) -> bool:
        # Before Python 3.13 a TaskGroup that is ending because a child failed swallows a cancellation
        # that comes just then: it is seen in the count alone.
        return self._task is not None and self._task.cancelling() > 0

    async def _serve(self, session: Session) -> None:
        lost: BaseException | None = None
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._receive(session), name="mqtt receive")
                await self._greet(session, group)
                self._session, self._failure = session, None
                self._notify()
                logger.info("%s: connected", self._who())
                await self._send(session, group)
        except* ConnectionLost as several:
            lost = several.exceptions[0]
        finally:
            if self._session is not session or len(self._outbox):
                # It may have said its birth and not yet its farewell: the will says that in its place.
                session.abandon()
            self._session = None
            self._outbox.disconnected()
            self._notify()
        if lost is not None:
            raise lost

    async def _greet(self, session: Session, group: asyncio.TaskGroup) -> None:
        window = asyncio.Semaphore(IN_FLIGHT)
        said: list[asyncio.Task[None]] = []
        for publication in self._birth() if callable(self._birth) else self._birth:
            await window.acquire()
            said.append(group.create_task(_say(session, publication, window), name="mqtt birth"))
        await asyncio.gather(*said)
        done: set[Subscription] = set()
        while missing := [one for one in self._subscriptions if one not in done]:
            filters = dict.fromkeys(filter for one in missing for filter in one.filters)
            denied = set(await session.subscribe(list(filters)))
            done.update(missing)
            for one in missing:
                if theirs := denied.intersection(one.filters):
                    one.fail(self._denial(sorted(theirs)))

    async def _receive(self, session: Session) -> None:
        async for delivery in session.deliveries():
            # Some brokers send what matches another client's filters: what nobody wants here is dropped.
            for subscription in self._subscriptions:
                if subscription.wants(delivery.message.topic):
                    subscription.deliver(delivery)

    async def _send(self, session: Session, group: asyncio.TaskGroup) -> None:
        window = asyncio.Semaphore(IN_FLIGHT)
        while True:
            self._outgoing.clear()
            for entry in self._outbox.unsent():
                await window.acquire()
                if self._outbox.mark_sent(entry):
                    group.create_task(self._send_one(session, entry, window), name="mqtt publish")
                else:
                    window.release()
            await self._outgoing.wait()

    async def _send_one(self, session: Session, entry: Entry, window: asyncio.Semaphore) -> None:
        await _say(session, entry.publication, window)
        self._outbox.acknowledge(entry)

    async def _flush(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FLUSH_S):
                while self._session is not None and (waiting := self._outbox.unsettled()):
                    await waiting[0].settled.wait()

    def _note(self, reason: str, failure: TrellisError | None) -> None:
        if reason != self._reason:
            logger.log(
                logging.ERROR if failure else logging.WARNING, "%s: not connected: %s", self._who(), reason
            )
        self._reason, self._failure = reason, failure
        self._notify()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _ended(self, task: asyncio.Task[None]) -> None:
        if task.cancelled() or task.exception() is None:
            return
        logger.error("%s: the bus broke", self._who(), exc_info=task.exception())
        self._notify()
        for subscription in self._subscriptions:
            subscription.fail(Unavailable(f"{self._who()}: the bus broke: {task.exception()}"))

    def _check_open(self) -> None:
        if self._task is None or self._task.done():
            raise Unavailable(f"{self._who()}: the bus is not open")

    def _denial(self, filters: Sequence[str]) -> Refused:
        return Refused(
            "broker",
            f"{self._who()}: may not subscribe to {', '.join(filters)}: the broker's ACL denies it; "
            "check the name in the certificate against the broker's ACL",
        )

    def _who(self) -> str:
        return f"broker {self._dialer.url}, client {self._dialer.client_id!r}"


async def _say(session: Session, publication: Publication, window: asyncio.Semaphore) -> None:
    """Return when the broker has a publication, and has made room for another."""
    await session.publish(publication)
    window.release()
