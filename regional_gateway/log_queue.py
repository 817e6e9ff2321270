"""Log lines that wait to go up: bounded, and whoever says most waits longest."""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from dataclasses import dataclass, field

from trellis.mqtt import Publication
from trellis.topics import Address


@dataclass(eq=False)
class _Sender:
    lines: deque[tuple[str, Publication]] = field(default_factory=deque)
    waiting_bytes: int = 0


class LogQueue:
    """A queue of each sender, which have their turn one after the other.

    Args:
        most_bytes: How much may wait in all; beyond it the oldest goes of whoever has most.

    Attributes:
        left_out: How many lines of each task have gone so, until somebody clears it.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes, self._bytes = most_bytes, 0
        self._senders: OrderedDict[tuple[str, str], _Sender] = OrderedDict()
        self.left_out: Counter[str] = Counter()

    def __bool__(self) -> bool:
        return bool(self._senders)

    def put(self, address: Address, line: Publication) -> None:
        """Have a line wait, behind those of the same device or gateway."""
        who = (address.region, address.device)
        sender = self._senders.setdefault(who, _Sender())
        sender.lines.append((address.task, line))
        sender.waiting_bytes += size_bytes(line)
        self._bytes += size_bytes(line)
        while self._bytes > self._most_bytes:
            task, _ = self._take(max(self._senders, key=lambda one: self._senders[one].waiting_bytes))
            self.left_out[task] += 1

    def take(self) -> Publication:
        """Remove and return the oldest line of the sender whose turn it is."""
        who = next(iter(self._senders))
        _, line = self._take(who)
        if who in self._senders:
            self._senders.move_to_end(who)
        return line

    def _take(self, who: tuple[str, str]) -> tuple[str, Publication]:
        sender = self._senders[who]
        task, line = sender.lines.popleft()
        sender.waiting_bytes -= size_bytes(line)
        self._bytes -= size_bytes(line)
        if not sender.lines:
            del self._senders[who]
        return task, line


def size_bytes(line: Publication) -> int:
    """Return what a line takes on its way."""
    return len(line.topic) + len(line.payload)
