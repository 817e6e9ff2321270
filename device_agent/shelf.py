"""The tasks that a device takes up again by itself, once its clock or its disk is mended."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from device_agent.eligibility import Believed
from trellis.descriptor import parse_json
from trellis.envelope import Envelope


@dataclass(frozen=True)
class _Untimely:
    envelope: bytes
    issued_at: datetime
    expires_at: datetime


class Shelf:
    """Envelopes that came out of their time by this device's clock, and tasks that found its disk full."""

    def __init__(self) -> None:
        self._untimely: dict[str, _Untimely] = {}
        self._starved: dict[str, Believed] = {}

    def put_untimely(self, task: str, envelope: bytes) -> None:
        """Keep the envelope of a descriptor until the clock says that its time is now."""
        descriptor = parse_json(Envelope.parse(envelope).payload)
        self._untimely[task] = _Untimely(envelope, descriptor.issued_at, descriptor.expires_at)

    def drop_untimely(self, task: str) -> None:
        """Another envelope has come in its place."""
        self._untimely.pop(task, None)

    def take_timely(self, now: datetime) -> tuple[str, bytes] | None:
        """Take down a task's envelope whose time is now."""
        for task, kept in self._untimely.items():
            if kept.issued_at <= now < kept.expires_at:
                del self._untimely[task]
                return task, kept.envelope
        return None

    def put_starved(self, believed: Believed) -> None:
        """Keep a task until the disk has room."""
        self._starved[believed.descriptor.task] = believed

    @property
    def starved(self) -> tuple[str, ...]:
        """The tasks that wait for room."""
        return tuple(self._starved)

    def take_starved(self, task: str) -> Believed | None:
        """Take down a task that waits for room, if it still does."""
        return self._starved.pop(task, None)

    def drop(self, task: str) -> None:
        """Nothing of the task is wanted any more."""
        self.drop_untimely(task)
        self.take_starved(task)
