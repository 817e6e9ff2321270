"""Takes signed tasks in for the region: verified, then stored. It can't sign, and alters nothing signed."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Protocol

from regional_gateway.ledger import Ledger, TaskRecord
from regional_gateway.place import Place
from trellis import descriptor as descriptors
from trellis.admission_rules import parse_posted, rule_of
from trellis.descriptor import TaskDescriptor
from trellis.envelope import Envelope, Keyring
from trellis.errors import InvalidInput, Refused
from trellis.payloads import Reason
from trellis.tier.strategies import STRATEGY_RULES

logger = logging.getLogger(__name__)

NOTE_EVERY = timedelta(seconds=1)
"""How often a refusal is noted on a task: any member may post, and each note is a write and a message."""


@dataclass(frozen=True)
class Admission:
    """What became of a posted task: its record, and whether it is new or a new revision."""

    record: TaskRecord
    changed: bool


def verify(envelope: Envelope, *, keyring: Keyring, region: str, now: datetime) -> TaskDescriptor:
    """Return the descriptor in `envelope` if this region may pass it on.

    Raises:
        Refused: `signature` or `untrusted`; `region` if it names others only; `expired`.
        DescriptorError: What was signed is no descriptor; whatever else would be refused is told with it.
    """
    keyring.verify(envelope)
    in_region, unexpired = partial(_require_region, region=region), partial(_require_unexpired, now=now)
    descriptor = parse_posted(
        envelope.payload,
        (
            *STRATEGY_RULES,
            rule_of(in_region, "task", "regions"),
            rule_of(unexpired, "task", "issued_at", "expires_at"),
        ),
    )
    in_region(descriptor)
    unexpired(descriptor)
    if descriptor.issued_at > now:
        logger.warning(
            "task issued in the future, devices refuse it until then: check clocks task=%s ahead_s=%.0f",
            descriptor.task,
            (descriptor.issued_at - now).total_seconds(),
        )
    return descriptor


def _require_region(descriptor: TaskDescriptor, *, region: str) -> None:
    if region not in descriptor.regions:
        raise Refused(
            "region",
            f"task {descriptor.task!r} is for {', '.join(descriptor.regions[:20])}, this gateway serves "
            f"{region!r}: post it there, or add {region!r} to its regions",
        )


def _require_unexpired(descriptor: TaskDescriptor, *, now: datetime) -> None:
    if descriptor.expires_at <= now:
        raise Refused(
            "expired",
            f"task {descriptor.task!r} expired {descriptor.expires_at.isoformat()}, and it is "
            f"{now.isoformat(timespec='seconds')} here: sign it again with a later expires_at",
        )


def is_news(known: TaskDescriptor, posted: TaskDescriptor) -> bool:
    """Whether `posted` is to be taken up; False if it says what is known already.

    Raises:
        Refused: `revision` if it is older, `conflict` if its revision is known with other content.
    """
    if posted.revision > known.revision:
        return True
    if posted.revision < known.revision:
        raise Refused(
            "revision",
            f"task {posted.task!r} came with revision {posted.revision}, known here is {known.revision}: "
            f"give it revision {known.revision + 1}",
        )
    if not posted.same_work(known):
        raise Refused(
            "conflict",
            f"task {posted.task!r} revision {posted.revision} is known here with other content: "
            f"a change needs revision {known.revision + 1}",
        )
    return False


class Witness(Protocol):
    """Knows what goes on elsewhere."""

    def has_begun(self, task: str, revision: int) -> bool:
        """Whether a device of the region is at work on this revision."""

    def central_revision(self, task: str) -> int:
        """Return the revision that the server has of a task, 0 if it was not heard."""


class Relay:
    """Admits posted tasks into the ledger."""

    def __init__(
        self,
        ledger: Ledger,
        witness: Witness,
        *,
        keyring: Keyring,
        place: Place,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._ledger, self._witness = ledger, witness
        self._keyring, self._place, self._now = keyring, place, now
        self._noted: dict[str, datetime] = {}  # when a refusal was last noted, by task

    async def admit(self, data: bytes) -> Admission:
        """Return once the posted envelope is on disk, or was there before.

        A refusal is logged, and noted in the record of the task that the envelope claims to be, at most
        once a second; what is taken, or known already, takes the note away.

        Raises:
            PayloadError: It is no envelope.
            DescriptorError: It holds no descriptor.
            Refused: A rule says no.
        """
        envelope = Envelope.parse(data)
        try:
            return await self._admit(envelope)
        except Refused as refusal:
            await self._note(_claimed_task(envelope), refusal)
            raise

    async def _admit(self, envelope: Envelope) -> Admission:
        now = self._now()
        region = self._place.region
        posted = verify(envelope, keyring=self._keyring, region=region, now=now)
        self._place.require_front(posted)
        self._place.require_path(posted)
        now_ms = int(now.timestamp() * 1000)
        relayed = envelope.with_relay({region: now.isoformat(timespec="milliseconds")}).to_bytes()

        changed = False

        def take(known: TaskRecord | None) -> TaskRecord:
            nonlocal changed
            if known is not None:
                if not is_news(known.descriptor, posted):
                    return replace(known, verdict=None)
                self._require_rest(known, posted)
            changed = True
            fresh = known or TaskRecord(posted, relayed, now_ms)
            return fresh.followed_by(posted, relayed, now_ms)

        record, _ = await self._ledger.change(posted.task, take)
        if record is None:  # `take` never deletes
            raise RuntimeError(f"task {posted.task!r} vanished while it was admitted")
        logger.info(
            "task %s task=%s revision=%d desired=%s",
            "taken" if changed else "known already",
            posted.task,
            record.descriptor.revision,
            record.descriptor.desired,
        )
        return Admission(record, changed)

    def _require_rest(self, known: TaskRecord, posted: TaskDescriptor) -> None:
        """Return if what is known may be followed: a task that runs keeps its work, as at the server."""
        task, revision = known.task, known.descriptor.revision
        # What the server has taken already is taken here: its word of the end may still be on its way.
        if posted.desired == "canceled" or self._witness.central_revision(task) >= posted.revision:
            return
        if known.is_at_work(begun=self._witness.has_begun(task, revision)):
            state = known.central or "begun by devices"
            raise Refused(
                "conflict",
                f"task {task!r} revision {revision} is {state}: its work does not change while it runs; "
                "cancel it first, or post under another name",
            )

    async def _note(self, task: str | None, refusal: Refused) -> None:
        logger.warning("task refused task=%s code=%s: %s", task, refusal.code, refusal)
        verdict = Reason(code=refusal.code, message=str(refusal))

        def note(known: TaskRecord | None) -> TaskRecord | None:
            return replace(known, verdict=verdict) if known else None

        if task is None or self._ledger.get(task) is None:
            return
        now, last = self._now(), self._noted.get(task)
        if last is not None and last <= now < last + NOTE_EVERY:
            return
        _, changed = await self._ledger.change(task, note)  # an equal one changes nothing
        if changed:
            self._noted[task] = now


def _claimed_task(envelope: Envelope) -> str | None:
    # Perhaps not signed by anybody we trust: good enough to say what was refused, and for nothing else.
    try:
        return descriptors.parse_json(envelope.payload).task
    except InvalidInput:
        return None
