"""Pulls replies from a SuperLink without ever waiting for one that does not come.

A reply is visible before its objects have arrived, and Flower's grid then waits for them for up to two hours.
So each reply is pulled in a thread of its own, which is left behind if its time is over; and one reply that
cannot be read fails alone.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass

from flwr.app import Message

from trellis.flower.mail import Mail

logger = logging.getLogger(__name__)

AT_ONCE = 8
_AGAIN_S = 0.5
"""A reply that was announced and is not there is asked for again after this."""
_HUNG_S = 10.0
"""A pull that takes longer no longer counts among those at once: a few that hang must not stop all others."""


@dataclass(frozen=True)
class Pulled:
    """What came of one pull: a reply, nothing yet (both None), or why it cannot be read."""

    message_id: str
    reply: Message | None = None
    problem: str | None = None


class Puller:
    """Pulls under way from one mail."""

    def __init__(self, mail: Mail) -> None:
        self._mail = mail
        self._waiting: dict[str, None] = {}
        self._running: dict[str, float] = {}
        self._not_before: dict[str, float] = {}
        self._done: queue.SimpleQueue[Pulled] = queue.SimpleQueue()

    @property
    def busy(self) -> bool:
        """Whether a pull is under way, and not hung, or waits for its turn."""
        return bool(self._waiting) or self._at_work() > 0

    def start(self, message_ids: Iterable[str]) -> None:
        """Begin to pull the replies to these messages; those under way are not pulled twice."""
        now = time.monotonic()
        fresh = (
            key for key in message_ids if key not in self._running and self._not_before.get(key, 0) <= now
        )
        self._waiting |= dict.fromkeys(fresh)
        while self._waiting and self._at_work() < AT_ONCE:
            message_id = next(iter(self._waiting))
            del self._waiting[message_id]
            self._running[message_id] = time.monotonic()
            # A daemon: one that hangs on a reply that is never whole must not keep the app from ending.
            threading.Thread(target=self._pull, args=(message_id,), name="pull", daemon=True).start()

    def take(self, timeout_s: float) -> list[Pulled]:
        """Return what is done, after at most `timeout_s` for the first; empty if nothing is."""
        found: list[Pulled] = []
        try:
            if self._running:
                found.append(self._done.get(timeout=max(0.0, timeout_s)))
            while True:
                found.append(self._done.get_nowait())
        except queue.Empty:
            pass
        for pulled in found:
            self._running.pop(pulled.message_id, None)
            if pulled.reply is None and pulled.problem is None:
                self._not_before[pulled.message_id] = time.monotonic() + _AGAIN_S
        self.start(())
        return found

    def _at_work(self) -> int:
        now = time.monotonic()
        return sum(now - started < _HUNG_S for started in self._running.values())

    def _pull(self, message_id: str) -> None:
        try:
            replies = list(self._mail.pull_messages([message_id]))
        except BaseException as error:  # noqa: BLE001 - what a client uploaded may raise anything in Flower
            self._done.put(Pulled(message_id, problem=f"cannot be read: {type(error).__name__}: {error}"))
            return
        # The SuperLink's own errors come from node 1: only this field says whom they are about.
        reply = next((r for r in replies if r.metadata.reply_to_message_id == message_id), None)
        self._done.put(Pulled(message_id, reply))
