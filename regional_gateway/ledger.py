"""The region's tasks: in memory for reading, and every change on disk before it shows."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Self

from pydantic import ValidationError

from regional_gateway.store import Store, StoredTask
from trellis import descriptor as descriptors
from trellis.descriptor import TaskDescriptor
from trellis.envelope import Envelope
from trellis.errors import InvalidInput
from trellis.payloads import CentralTask, Reason, TaskState

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TaskRecord:
    """One task as this region has it; the fields are those of `StoredTask`, parsed."""

    descriptor: TaskDescriptor
    envelope: bytes
    posted_ms: int
    central: TaskState | None = None
    verdict: Reason | None = None
    ended_ms: int | None = None
    cleared: bool = False

    @property
    def task(self) -> str:
        return self.descriptor.task

    def elapsed_s(self, now_ms: int) -> float:
        """Return the seconds from its posting here to its end, or to now."""
        return max((self.ended_ms or now_ms) - self.posted_ms, 0) / 1000

    @property
    def runs(self) -> bool:
        """Whether there is more to hear of it from the centre, whose end comes when the window's is over."""
        return self.descriptor.desired == "run" and not self.cleared and self.ended_ms is None

    @property
    def over_ms(self) -> int:
        """When it is over for who keeps its topics, ms: as learned, else when it expires."""
        return self.ended_ms or self.expires_ms

    @property
    def expires_ms(self) -> int:
        """When its window ends, ms."""
        return int(self.descriptor.expires_at.timestamp() * 1000)

    def is_at_work(self, *, begun: bool) -> bool:
        """Whether its work may not change now; `begun` by devices decides while the centre is silent."""
        if self.descriptor.desired == "canceled" or self.cleared:
            return False
        return begun if self.central is None else not self.central.ended

    def followed_by(self, descriptor: TaskDescriptor, envelope: bytes, now_ms: int) -> TaskRecord:
        """Return the record of a later revision; one that runs has not been heard of at the centre yet."""
        canceled = descriptor.desired == "canceled"
        return TaskRecord(
            descriptor,
            envelope,
            self.posted_ms if canceled else now_ms,
            central=self.central if canceled else None,
            ended_ms=(self.ended_ms or now_ms) if canceled else None,
        )

    def at_centre(self, said: CentralTask, now_ms: int) -> TaskRecord:
        """Return the record with what the server says of this revision, or of its end by a later one."""
        if said.revision < self.descriptor.revision:
            return self
        if said.revision > self.descriptor.revision and not said.state.ended:
            return self  # another task's life, or the beginning of this one's cancellation
        ended_ms = self.ended_ms
        if said.state.ended:
            ended_ms = ended_ms or now_ms
        elif self.descriptor.desired == "run":
            ended_ms = None
        return replace(self, central=said.state, ended_ms=ended_ms)

    def stored(self) -> StoredTask:
        """Return the row that `from_stored` reads."""
        return StoredTask(
            task=self.task,
            revision=self.descriptor.revision,
            desired=self.descriptor.desired,
            envelope=self.envelope,
            posted_ms=self.posted_ms,
            central=self.central,
            verdict=self.verdict.model_dump_json() if self.verdict else None,
            ended_ms=self.ended_ms,
            cleared=self.cleared,
        )

    @classmethod
    def from_stored(cls, row: StoredTask) -> Self:
        """Return the record of a row.

        Raises:
            InvalidInput: A release with another contract wrote it.
        """
        envelope = Envelope.parse(row.envelope)
        return cls(
            descriptor=descriptors.parse_json(envelope.payload),
            envelope=row.envelope,
            posted_ms=row.posted_ms,
            central=TaskState(row.central) if row.central else None,
            verdict=Reason.model_validate_json(row.verdict) if row.verdict else None,
            ended_ms=row.ended_ms,
            cleared=row.cleared,
        )


class Ledger:
    """All tasks of the region, those included whose topics are cleared."""

    def __init__(self, store: Store, records: dict[str, TaskRecord]) -> None:
        self._store = store
        self._records = records
        self._lock = asyncio.Lock()
        self._watchers: list[Callable[[str], None]] = []

    def watch(self, watcher: Callable[[str], None]) -> None:
        """Have `watcher` called with the name of each task that has changed."""
        self._watchers.append(watcher)

    @classmethod
    async def load(cls, store: Store) -> Self:
        """Return the ledger as it was left; a row that cannot be read is logged and left alone."""
        records: dict[str, TaskRecord] = {}
        for row in await store.tasks():
            try:
                records[row.task] = TaskRecord.from_stored(row)
            except (InvalidInput, ValidationError, ValueError) as error:
                logger.error("stored task cannot be read, post it again task=%s: %s", row.task, error)
        return cls(store, records)

    def get(self, task: str) -> TaskRecord | None:
        """Return the record of `task`, if it was ever posted."""
        return self._records.get(task)

    def __iter__(self) -> Iterator[TaskRecord]:
        return iter(tuple(self._records.values()))

    def live(self) -> list[TaskRecord]:
        """Return the tasks whose topics stand."""
        return [record for record in self if not record.cleared]

    async def change(
        self, task: str, change: Callable[[TaskRecord | None], TaskRecord | None]
    ) -> tuple[TaskRecord | None, bool]:
        """Replace the record of `task` by what `change` makes of it; `None` deletes.

        Returns:
            The record as it now is, and whether it changed; it is on disk by then. What `change` raises
            passes, and nothing has changed.
        """
        async with self._lock:
            before = self._records.get(task)
            after = change(before)
            if after == before:
                return before, False
            if after is None:
                await self._store.delete_task(task)
                self._records.pop(task)
            else:
                await self._store.save_task(after.stored())
                self._records[task] = after
            for watcher in self._watchers:
                watcher(task)
            return after, True
