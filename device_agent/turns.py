"""Who may train now: devices that share a process share its processors."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from trellis.errors import Canceled

LOOK_S = 1.0
"""How often whoever waits for a turn asks whether it is still wanted."""


class Turns:
    """At most `most` hold a turn at a time; a device alone in its process never waits."""

    def __init__(self, most: int = 1) -> None:
        self._free = threading.BoundedSemaphore(most)

    @contextmanager
    def turn(self, should_stop: Callable[[], bool], waits: Callable[[], None]) -> Iterator[None]:
        """Hold a turn inside, which is waited for as long as need be.

        Args:
            should_stop: Asked while it is waited for.
            waits: Called once if it must be waited for.

        Raises:
            Canceled: `should_stop` said so before the turn came.
        """
        if not self._free.acquire(blocking=False):
            waits()
            while not self._free.acquire(timeout=LOOK_S):
                if should_stop():
                    raise Canceled("training was called off before its turn came")
        try:
            yield
        finally:
            self._free.release()
