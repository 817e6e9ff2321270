"""QoS 1 publications between `publish` and the broker's acknowledgement."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field

from trellis.mqtt.messages import Publication


@dataclass(eq=False)
class Entry:
    """A publication on its way; `settled` is set when nobody need wait for it any longer."""

    publication: Publication
    sent: bool = False
    settled: asyncio.Event = field(default_factory=asyncio.Event)


class Outbox:
    """A bounded queue in order of publication; of retained ones it keeps the last of each topic.

    What has been sent stays until it is acknowledged, so that a lost connection loses nothing.

    Attributes:
        dropped: How many went because the queue was full.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._entries: dict[int, Entry] = {}  # by a rising number, hence in order
        self._retained: dict[str, int] = {}  # topic -> number of its latest, not yet sent
        self._number = 0
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._entries)

    def put(self, publication: Publication) -> tuple[Entry, Publication | None]:
        """Return the new entry, and what had to go for it."""
        if publication.retain:
            self._remove(self._retained.get(publication.topic))
        lost = self._make_room() if len(self._entries) >= self._capacity else None
        entry = Entry(publication)
        self._number += 1
        self._entries[self._number] = entry
        if publication.retain:
            self._retained[publication.topic] = self._number
        return entry, lost

    def unsent(self) -> Iterator[Entry]:
        """Yield what is to be sent, in order; the caller sets `sent` through `mark_sent`."""
        yield from [entry for entry in self._entries.values() if not entry.sent]

    def unsettled(self) -> list[Entry]:
        """Return what somebody may be waiting for."""
        return [entry for entry in self._entries.values() if not entry.settled.is_set()]

    def mark_sent(self, entry: Entry) -> bool:
        """Return whether `entry` is still to be sent, and note that it is."""
        if entry.settled.is_set() or entry.sent:
            return False
        entry.sent = True
        if self._retained_entry(entry.publication.topic) is entry:
            del self._retained[entry.publication.topic]
        return True

    def acknowledge(self, entry: Entry) -> None:
        """Forget `entry`: the broker has it."""
        self._remove(next((number for number, one in self._entries.items() if one is entry), None))

    def disconnected(self) -> None:
        """Queue again what was not acknowledged, and let go everybody who waits for it."""
        latest = {e.publication.topic: n for n, e in self._entries.items() if e.publication.retain}
        for number, entry in list(self._entries.items()):
            entry.settled.set()
            if entry.publication.retain and latest[entry.publication.topic] != number:
                del self._entries[number]
        self._entries = {n: Entry(entry.publication) for n, entry in self._entries.items()}
        self._retained = latest

    def _retained_entry(self, topic: str) -> Entry | None:
        number = self._retained.get(topic)
        return None if number is None else self._entries.get(number)

    def _make_room(self) -> Publication | None:
        unsent = [(number, entry) for number, entry in self._entries.items() if not entry.sent]
        plain = (number for number, entry in unsent if not entry.publication.retain)
        number = next(plain, unsent[0][0] if unsent else None)
        if number is None:
            return None  # all are on their way: bounded by what may be in flight
        self.dropped += 1
        lost = self._entries[number].publication
        self._remove(number)
        return lost

    def _remove(self, number: int | None) -> None:
        entry = None if number is None else self._entries.pop(number, None)
        if entry is None or number is None:
            return
        entry.settled.set()
        if self._retained.get(entry.publication.topic) == number:
            del self._retained[entry.publication.topic]
