"""What the gateway says on MQTT about its region's tasks, all of it retained: from ledger and roster."""

from __future__ import annotations

from collections.abc import Iterator

from regional_gateway.ledger import Ledger, TaskRecord
from regional_gateway.roster import Roster
from trellis.mqtt import Publication
from trellis.payloads import Round, RoundPhase, TaskStatus
from trellis.topics import Kind, Topics


class Board:
    """Renders publications, and knows which statuses have been said already."""

    def __init__(self, topics: Topics, region: str, ledger: Ledger, roster: Roster) -> None:
        self._topics, self._region = topics, region
        self._ledger, self._roster = ledger, roster
        self._rounds: dict[str, bytes] = {}
        self._said: dict[str, TaskStatus] = {}

    def status(self, record: TaskRecord) -> TaskStatus:
        """Return what became of a task in the region so far."""
        return TaskStatus(
            task=record.task,
            revision=record.descriptor.revision,
            desired=record.descriptor.desired,
            central=record.central,
            executions=self._roster.count(record.task),
            verdict=record.verdict,
        )

    def descriptor_publication(self, record: TaskRecord) -> Publication:
        """Return the signed descriptor; empty once the task's topics are cleared."""
        payload = b"" if record.cleared else record.envelope
        return self._retained(Kind.DESCRIPTOR, record.task, payload)

    def status_publication(self, record: TaskRecord) -> Publication:
        """Return the status; empty once the task's topics are cleared."""
        payload = b"" if record.cleared else self.status(record).to_bytes()
        return self._retained(Kind.TASK_STATUS, record.task, payload)

    def status_news(self, record: TaskRecord) -> Publication | None:
        """Return the status if it says another thing than the last time."""
        if record.cleared:
            self._said.pop(record.task, None)
            return self.status_publication(record)
        status = self.status(record)
        said = self._said.get(record.task)
        if said is not None and status == said.model_copy(update={"ts": status.ts}):
            return None
        self._said[record.task] = status
        return self._retained(Kind.TASK_STATUS, record.task, status.to_bytes())

    def round_publication(self, task: str, payload: bytes) -> Publication:
        """Return the copy of a round, and remember it for the next connect; an empty one is forgotten."""
        if payload:
            self._rounds[task] = payload
        else:
            self._rounds.pop(task, None)
        return self._retained(Kind.TASK_ROUND, task, payload)

    def round(self, task: str) -> int:
        """Return how many rounds the centre has finished, by what it announced last."""
        payload = self._rounds.get(task)
        if not payload:
            return 0
        last = Round.parse(payload)
        at_work = last.phase not in {RoundPhase.GATHERING, RoundPhase.DONE}
        return last.round - 1 if at_work else last.round

    def for_region(self) -> Iterator[Publication]:
        """Yield everything that must stand on the region's broker; a restarted broker may have lost it."""
        for record in self._ledger:
            yield self.descriptor_publication(record)
            yield self.status_publication(record)
            if record.cleared or record.task in self._rounds:
                payload = b"" if record.cleared else self._rounds[record.task]
                yield self._retained(Kind.TASK_ROUND, record.task, payload)

    def for_parent(self) -> Iterator[Publication]:
        """Yield everything about tasks that must stand on the parent's broker, where that is another one."""
        for record in self._ledger:
            yield self.status_publication(record)

    def _retained(self, kind: Kind, task: str, payload: bytes) -> Publication:
        return Publication(self._topics.path(kind, region=self._region, task=task), payload, retain=True)
