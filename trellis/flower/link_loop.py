"""Pulls messages from one Flower server and pushes the replies, in a thread of its own."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Protocol

from flwr.app import Error, Message

from trellis.errors import Refused, TrellisError, Unavailable

logger = logging.getLogger(__name__)

HANDLER_BROKE = 100


class Link(Protocol):
    """A Flower client of one server, as `trellis.flower.link.FlowerLink`; blocking, for one thread."""

    @property
    def in_hand(self) -> Collection[str]:
        """The IDs of the messages that this node has, and has not answered."""

    def connect(self) -> int:
        """Be an active node and return its ID; raises Unavailable or Refused."""

    def pull(self, asked: Callable[[], None]) -> Message | None:
        """Return the next message, first those that a crash left unanswered.

        Args:
            asked: Called before a message is fetched that asks for work and may take long to come.
        """

    def push(self, reply: Message) -> str:
        """Upload a reply and return the ID of the message it answers; raises Refused `reply`."""

    def close(self, *, deactivate: bool) -> None:
        """Close the connection; sign the node off only after the task has ended."""


class LinkEvents(Protocol):
    """Hears how the link fares; called in the link's thread."""

    def connecting(self, reason: str) -> None: ...

    def connected(self, node_id: int, in_hand: Collection[str]) -> None: ...

    def asked(self) -> None: ...

    def replying(self, message_id: str) -> None: ...

    def replied(self, message: Message, reply: Message) -> None: ...


@dataclass(frozen=True)
class Pace:
    """How often the server is asked, in seconds.

    Attributes:
        idle_s: At least, between pulls where nothing was announced; up to a quarter more spreads a fleet.
        empty_s: Between two pulls that find nothing; one right after a message is free.
        recheck_s: After an announcement that found nothing: it may have overtaken its message; and after a
            reply, for an announcement that was lost.
        retry_s: First wait after a failure; it doubles. An announcement ends all of it but the first.
        retry_most_s: Longest wait after failures.
    """

    idle_s: float = 60.0
    empty_s: float = 1.0
    recheck_s: float = 2.0
    retry_s: float = 0.5
    retry_most_s: float = 30.0


class Halt:
    """Tells a link's thread to wake up, and to end."""

    def __init__(self) -> None:
        self._news = threading.Event()
        self._called = threading.Event()
        self.task_ended = False

    @property
    def called(self) -> bool:
        """Whether the thread must end."""
        return self._called.is_set()

    def wake(self) -> None:
        """Let the thread pull soon."""
        self._news.set()

    def call(self, *, task_ended: bool) -> None:
        """End the thread; only where the task has ended its node is signed off."""
        self.task_ended = task_ended
        self._called.set()
        self._news.set()

    def take_news(self) -> bool:
        """Return whether `wake` was called since the last time this was asked."""
        news = self._news.is_set()
        self._news.clear()
        return news

    def wait_news(self, timeout_s: float) -> None:
        """Return when `wake` or `call` was called, or the time is over."""
        if not self.called:
            self._news.wait(max(0.0, timeout_s))

    def wait_called(self, timeout_s: float) -> None:
        """Return when `call` was called, or the time is over."""
        self._called.wait(max(0.0, timeout_s))


class LinkLoop:
    """One link's life: connected again after every failure, until it is halted."""

    def __init__(
        self,
        link: Link,
        answer: Callable[[Message, int], Message],
        *,
        events: LinkEvents,
        halt: Halt,
        pace: Pace,
    ) -> None:
        self._link = link
        self._answer = answer
        self._events = events
        self._halt = halt
        self._pace = pace
        self._node_id: int | None = None
        self._failures = 0
        self._found_last = True  # the first pull after connecting is free, too
        self._empty_at = float("-inf")

    def run(self) -> None:
        """Return when halted; the link is closed."""
        try:
            while not self._halt.called:
                try:
                    self._turn()
                except (Unavailable, Refused) as error:
                    self._lost(str(error))
                except TrellisError:
                    raise
                except Exception as error:  # Flower's client is not ours: its surprises must not end the task
                    logger.exception("link: unexpected failure")
                    self._lost(f"{type(error).__name__}: {error}")
        finally:
            self._close()

    def _turn(self) -> None:
        if self._node_id is None:
            self._node_id = self._link.connect()
            self._found_last = True
            self._events.connected(self._node_id, self._link.in_hand)
        announced = self._halt.take_news()
        # A message may be one that waits in the inbox: only an empty pull, or a push, shows that all is well.
        message = self._link.pull(self._events.asked)
        if message is None:
            self._failures = 0
            self._rest(announced=announced)
        else:
            self._found_last = True
            self._reply(message, self._node_id)
            # What follows is announced: asking before it is there only burdens the server.
            self._halt.wait_news(self._pace.recheck_s)

    def _reply(self, message: Message, node_id: int) -> None:
        try:
            reply = self._answer(message, node_id)
        except ValueError as error:
            # flwr's ClientApp raises it for a message type that it has no handler for.
            reply = Message(Error(code=HANDLER_BROKE, reason=str(error)), reply_to=message)
        if self._halt.called and not self._halt.task_ended:
            return  # this process ends, the task goes on: the next one answers it, from the inbox
        self._events.replying(message.metadata.message_id)
        try:
            self._link.push(reply)
        except Refused as error:
            if error.code != "reply":
                raise
            # Or it has this very reply already, and only its word for it was lost: the server may look.
            logger.warning("%s", error)
        self._failures = 0
        self._events.replied(message, reply)

    def _rest(self, *, announced: bool) -> None:
        """Return when it is time for the next pull."""
        if not self._found_last:
            self._empty_at = time.monotonic()
        self._found_last = False
        idle_s = self._pace.idle_s * random.uniform(1.0, 1.25)  # noqa: S311 - spreads a fleet's pulls, no secret
        self._halt.wait_news(self._pace.recheck_s if announced else idle_s)
        self._halt.wait_called(self._empty_at + self._pace.empty_s - time.monotonic())

    def _lost(self, reason: str) -> None:
        self._node_id = None
        self._failures += 1
        if self._halt.called:
            return
        logger.warning("link: %s", reason)
        self._events.connecting(reason)
        most_s = min(self._pace.retry_most_s, self._pace.retry_s * 2.0 ** min(self._failures - 1, 20))
        share = random.uniform(0.5, 1.0)  # noqa: S311 - as above
        # What was announced before says nothing; what is announced from now on, that somebody is there again.
        self._halt.take_news()
        self._halt.wait_called(min(most_s, self._pace.retry_s) * share)
        self._halt.wait_news((most_s - self._pace.retry_s) * share)

    def _close(self) -> None:
        try:
            self._link.close(deactivate=self._halt.task_ended)
        except Exception as error:  # noqa: BLE001 - the task's end must not hang on a server that is gone
            logger.warning("link: closing failed: %s", error)
