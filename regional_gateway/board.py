"""What the gateway says on MQTT about its region's tasks, all of it retained: from ledger and roster."""

from __future__ import annotations

from collections.abc import Iterator

from regional_gateway.ledger import Ledger, TaskRecord
from regional_gateway.place import Place
from regional_gateway.roster import Roster
from trellis.envelope import Envelope
from trellis.mqtt import Publication
from trellis.payloads import CentralTask, Round, RoundPhase, TaskStatus
from trellis.topics import Kind, Topics


def at_the_server(status: TaskStatus) -> CentralTask | None:
    """Return what a gateway's status of a task says of its state at the server; None if nothing."""
    if status.central is None:
        return None
    return CentralTask(
        task=status.task, revision=status.revision, state=status.central, since=status.ts, rounds=0
    )


class Board:
    """Renders publications, and knows which statuses have been said already."""

    def __init__(self, topics: Topics, place: Place, ledger: Ledger, roster: Roster) -> None:
        self._topics, self._place = topics, place
        self._ledger, self._roster = ledger, roster
        self._rounds: dict[str, bytes] = {}
        self._above: dict[str, Round] = {}
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
        if record.cleared:
            return self._retained(Kind.DESCRIPTOR, record.task, b"")
        # Now, and not when it was posted: what it comes with is another gateway's, and fronts may move.
        descriptor, place = record.descriptor, self._place
        hints = {"front": place.hint(descriptor), "artefacts": place.cache(descriptor)}
        envelope = Envelope.parse(record.envelope).with_hints(**hints)
        return self._retained(Kind.DESCRIPTOR, record.task, envelope.to_bytes())

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

    def is_own(self, task: str) -> bool:
        """Whether the rounds of `task` here are the region's own, and no copy."""
        record = self._ledger.get(task)
        return record is not None and self._place.aggregates(record.descriptor)

    def round_publication(self, task: str, payload: bytes) -> Publication:
        """Return a round, and remember it for the next connect; an empty one is forgotten."""
        if payload:
            self._rounds[task] = payload
        else:
            self._rounds.pop(task, None)
        return self._retained(Kind.TASK_ROUND, task, payload)

    def heard_above(self, task: str, last: Round | None) -> None:
        """Remember what the tier above announced last."""
        if last is None:
            self._above.pop(task, None)
        else:
            self._above[task] = last

    def round(self, task: str) -> int:
        """Return how many rounds the tier above has finished, by what it announced last."""
        last = self._above.get(task)
        if last is None:
            return 0
        at_work = last.phase not in {RoundPhase.GATHERING, RoundPhase.DONE}
        return last.round - 1 if at_work else last.round

    def standing_round(self, task: str) -> bytes | None:
        """Return the round that stands on the region's broker."""
        return self._rounds.get(task)

    def for_region(self) -> Iterator[Publication]:
        """Yield everything that must stand on the region's broker; a restarted broker may have lost it."""
        for record in self._ledger:
            yield self.descriptor_publication(record)
            yield self.status_publication(record)
            yield from self._standing_round(record)

    def for_parent(self) -> Iterator[Publication]:
        """Yield everything about tasks that must stand on the parent's broker, where that is another one."""
        for record in self._ledger:
            yield self.status_publication(record)
            if self.is_own(record.task):
                yield from self._standing_round(record)

    def _standing_round(self, record: TaskRecord) -> Iterator[Publication]:
        if record.cleared or record.task in self._rounds:
            payload = b"" if record.cleared else self._rounds[record.task]
            yield self._retained(Kind.TASK_ROUND, record.task, payload)

    def _retained(self, kind: Kind, task: str, payload: bytes) -> Publication:
        return Publication(
            self._topics.path(kind, region=self._place.region, task=task), payload, retain=True
        )
