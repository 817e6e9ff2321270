"""The relay: what is taken, what is refused, and that it is on disk first."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from regional_gateway.ledger import Ledger, TaskRecord
from regional_gateway.place import Place
from regional_gateway.relay import Relay
from regional_gateway.store import Store, StoredTask
from trellis.envelope import Envelope, sign
from trellis.errors import DescriptorError, PayloadError, Refused, Unavailable
from trellis.payloads import CentralTask, TaskState
from trellis.signing_key import SigningKey


@dataclass
class Elsewhere:
    """What devices and the server do."""

    begun: bool = False
    revision: int = 0

    def has_begun(self, task: str, revision: int) -> bool:
        return self.begun

    def central_revision(self, task: str) -> int:
        return self.revision


@dataclass
class Desk:
    store: Store
    ledger: Ledger
    relay: Relay
    elsewhere: Elsewhere

    async def hear(self, state: TaskState, revision: int = 1) -> None:
        """The server says how the task is."""
        self.elsewhere.revision = revision
        heard = said(state, revision)
        await self.ledger.change("digits", lambda record: record and record.at_centre(heard, 5))


@pytest.fixture
async def desk(tmp_path: Path, operator: Any) -> AsyncIterator[Desk]:
    async with Store(tmp_path / "gateway.sqlite") as store:
        ledger = await Ledger.load(store)
        elsewhere = Elsewhere()
        relay = Relay(ledger, elsewhere, keyring=operator.keyring, place=Place("eu-1"))
        yield Desk(store, ledger, relay, elsewhere)


async def refused(desk: Desk, data: bytes) -> str:
    with pytest.raises(Refused) as caught:
        await desk.relay.admit(data)
    return caught.value.code


async def test_a_signed_task_is_taken_and_stored(desk: Desk, operator: Any) -> None:
    data = operator.envelope()
    admission = await desk.relay.admit(data)
    assert admission.changed
    (row,) = await desk.store.tasks()
    stored, posted = Envelope.parse(row.envelope), Envelope.parse(data)
    assert (stored.payload, stored.signatures) == (posted.payload, posted.signatures)
    assert list(stored.relay) == ["eu-1"]
    assert operator.keyring.verify(stored) == operator.key.keyid


async def test_the_same_task_twice_changes_nothing(desk: Desk, operator: Any) -> None:
    first = await desk.relay.admit(operator.envelope())
    rows = await desk.store.tasks()
    # Signed again a day later, with another window.
    later = operator.envelope(issued_at=(datetime.now(UTC) - timedelta(days=1)).isoformat())
    second = await desk.relay.admit(later)
    assert (second.changed, second.record) == (False, first.record)
    assert await desk.store.tasks() == rows


async def test_a_faulty_descriptor_is_told_all_that_is_wrong_with_it(desk: Desk, operator: Any) -> None:
    posted = json.loads(operator.descriptor(regions=["us-1"]).to_json())
    wrong = {"participant": {}, "strategy": {"name": "fedavgg"}, "stop": {}, "evaluate": {"every": 0}}
    with pytest.raises(DescriptorError) as caught:
        await desk.relay.admit(sign(json.dumps(posted | wrong), operator.key).to_bytes())
    assert [fault.field for fault in caught.value.faults] == [
        "participant",
        "stop",
        "strategy.name",
        "regions",
    ]


async def test_a_later_revision_is_taken_and_an_older_one_refused(desk: Desk, operator: Any) -> None:
    await desk.relay.admit(operator.envelope(revision=2))
    assert await refused(desk, operator.envelope(revision=1)) == "revision"
    admission = await desk.relay.admit(operator.envelope(revision=3, desired="canceled"))
    assert admission.changed
    assert admission.record.ended_ms is not None


async def test_the_same_revision_with_other_content_is_a_conflict(desk: Desk, operator: Any) -> None:
    await desk.relay.admit(operator.envelope())
    assert await refused(desk, operator.envelope(train={"rounds": 4, "learning_rate": 0.1})) == "conflict"


@pytest.mark.parametrize("heard", [TaskState.POSTED, TaskState.RUNNING, None])
async def test_a_tasks_work_does_not_change_while_it_runs(
    desk: Desk, operator: Any, heard: TaskState | None
) -> None:
    await desk.relay.admit(operator.envelope())
    if heard is None:
        desk.elsewhere.begun = True
    else:
        await desk.hear(heard)
    before = desk.ledger.get("digits")
    assert before is not None
    other = operator.envelope(revision=2, train={"rounds": 4, "learning_rate": 0.1})
    with pytest.raises(Refused, match="cancel it first") as caught:
        await desk.relay.admit(other)
    assert caught.value.code == "conflict"
    after = desk.ledger.get("digits")
    assert after is not None
    assert (after.descriptor, after.envelope) == (before.descriptor, before.envelope)
    # Cancelled, it may follow under a higher revision.
    await desk.relay.admit(operator.envelope(revision=2, desired="canceled"))
    assert (await desk.relay.admit(operator.envelope(revision=3))).changed


@pytest.mark.parametrize("end", [TaskState.SUCCEEDED, TaskState.FAILED, TaskState.CANCELED])
async def test_an_ended_task_runs_again_under_a_higher_revision(
    desk: Desk, operator: Any, end: TaskState
) -> None:
    await desk.relay.admit(operator.envelope())
    await desk.hear(TaskState.RUNNING)
    await desk.hear(end)
    desk.elsewhere.begun = True  # a device that was away shows what it did before
    record = (await desk.relay.admit(operator.envelope(revision=2))).record
    assert (record.descriptor.revision, record.central, record.ended_ms) == (2, None, None)


async def test_a_revision_that_the_server_has_begun_is_taken_before_the_end_of_the_last_was_heard(
    desk: Desk, operator: Any
) -> None:
    await desk.relay.admit(operator.envelope())
    await desk.hear(TaskState.RUNNING)
    await desk.hear(TaskState.POSTED, revision=2)
    record = desk.ledger.get("digits")
    assert record is not None
    assert record.central is TaskState.RUNNING
    assert (await desk.relay.admit(operator.envelope(revision=2))).record.central is None


async def test_what_this_region_may_not_pass_on_is_refused(desk: Desk, operator: Any) -> None:
    past = datetime.now(UTC) - timedelta(days=2)
    window = {"issued_at": past.isoformat(), "expires_at": (past + timedelta(days=1)).isoformat()}
    stranger = sign(operator.descriptor().to_json(), SigningKey.generate()).to_bytes()
    forged = Envelope.parse(operator.envelope())
    forged = forged.model_copy(update={"payload": forged.payload.replace("0.1", "0.2")})
    assert await refused(desk, operator.envelope(regions=["us-1"])) == "region"
    assert await refused(desk, operator.envelope(**window)) == "expired"
    assert await refused(desk, stranger) == "untrusted"
    assert await refused(desk, forged.to_bytes()) == "signature"
    assert await desk.store.tasks() == []


async def test_what_is_no_envelope_is_invalid(desk: Desk, operator: Any) -> None:
    for data in (b"", b"{}", operator.descriptor().to_json().encode()):
        with pytest.raises(PayloadError):
            await desk.relay.admit(data)


async def test_a_refusal_is_noted_on_the_task_that_it_concerns_until_the_next_revision(
    desk: Desk, operator: Any
) -> None:
    await desk.relay.admit(operator.envelope(revision=2))
    await refused(desk, operator.envelope(revision=1))
    record = desk.ledger.get("digits")
    assert record is not None
    assert record.verdict is not None
    assert record.verdict.code == "revision"
    assert (await desk.store.tasks())[0].verdict is not None
    assert (await desk.relay.admit(operator.envelope(revision=3))).record.verdict is None


async def test_the_right_envelope_takes_a_forgers_note_away(desk: Desk, operator: Any) -> None:
    await desk.relay.admit(operator.envelope())
    forged = sign(operator.descriptor().to_json(), SigningKey.generate()).to_bytes()
    assert await refused(desk, forged) == "untrusted"
    before = desk.ledger.get("digits")
    assert before is not None
    assert before.verdict is not None
    again = await desk.relay.admit(operator.envelope())
    assert (again.changed, again.record) == (False, replace(before, verdict=None))
    assert (await desk.store.tasks())[0].verdict is None


async def test_refusals_are_noted_once_a_second_and_equal_ones_not_at_all(
    desk: Desk, operator: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [datetime.now(UTC)]
    relay = Relay(
        desk.ledger, desk.elsewhere, keyring=operator.keyring, place=Place("eu-1"), now=lambda: clock[0]
    )
    desk.relay = relay
    await relay.admit(operator.envelope(revision=2))
    saved: list[str | None] = []
    save = desk.store.save_task

    async def count(row: StoredTask) -> None:
        saved.append(row.verdict)
        await save(row)

    monkeypatch.setattr(desk.store, "save_task", count)
    forged = [sign(operator.descriptor().to_json(), SigningKey.generate()).to_bytes() for _ in range(5)]
    for data in forged:  # each names another key
        await refused(desk, data)
    assert len(saved) == 1
    clock[0] += timedelta(seconds=1)
    await refused(desk, forged[0])  # what is noted already
    assert len(saved) == 1
    await refused(desk, forged[1])
    assert len(saved) == 2


async def test_a_task_that_cannot_be_stored_is_not_taken(tmp_path: Path, operator: Any) -> None:
    async with Store(tmp_path / "gateway.sqlite") as store:
        ledger = await Ledger.load(store)
    relay = Relay(ledger, Elsewhere(), keyring=operator.keyring, place=Place("eu-1"))
    with pytest.raises(Unavailable):
        await relay.admit(operator.envelope())
    assert ledger.get("digits") is None


async def test_the_ledger_is_the_same_after_a_restart(desk: Desk, operator: Any) -> None:
    await desk.relay.admit(operator.envelope(revision=2))
    await refused(desk, operator.envelope(revision=1))
    again = await Ledger.load(desk.store)
    assert list(again) == list(desk.ledger)


def record_of(operator: Any, **changes: Any) -> TaskRecord:
    return TaskRecord(operator.descriptor(**changes), b"", posted_ms=0)


def said(state: TaskState, revision: int = 1) -> CentralTask:
    return CentralTask(task="digits", revision=revision, state=state, since=0, rounds=3)


def test_the_end_at_the_centre_is_the_task_end(operator: Any) -> None:
    record = record_of(operator).at_centre(said(TaskState.RUNNING), 5)
    assert (record.central, record.ended_ms, record.runs) == (TaskState.RUNNING, None, True)
    record = record.at_centre(said(TaskState.SUCCEEDED), 6).at_centre(said(TaskState.SUCCEEDED), 7)
    assert (record.central, record.ended_ms, record.runs) == (TaskState.SUCCEEDED, 6, False)


def test_the_end_of_an_earlier_revision_is_no_end(operator: Any) -> None:
    record = record_of(operator).at_centre(said(TaskState.SUCCEEDED), 5)
    again = record.followed_by(operator.descriptor(revision=2), b"", 9)
    assert (again.central, again.ended_ms) == (None, None)
    assert again.at_centre(said(TaskState.SUCCEEDED, revision=1), 10) == again
    assert again.at_centre(said(TaskState.FAILED, revision=2), 11).ended_ms == 11


def test_the_time_of_a_task_counts_from_its_posting_to_its_end_and_anew_for_a_new_run(operator: Any) -> None:
    record = record_of(operator)
    assert record.elapsed_s(now_ms=4_000) == 4.0
    off = record.followed_by(operator.descriptor(revision=2, desired="canceled"), b"", 5_000)
    assert off.elapsed_s(now_ms=9_000) == 5.0
    assert off.followed_by(operator.descriptor(revision=3), b"", 7_000).elapsed_s(now_ms=9_000) == 2.0


def test_a_task_whose_end_is_never_heard_is_over_when_it_expires_and_asked_for_until_it_is_cleared(
    operator: Any,
) -> None:
    expires_ms = 1_000_000_000_000  # 2001-09-09 01:46:40 UTC
    window = {"issued_at": "2001-09-09T00:00:00Z", "expires_at": "2001-09-09T01:46:40Z"}
    begun = record_of(operator, **window)
    for record in (begun, begun.at_centre(said(TaskState.RUNNING), 5)):
        assert record.over_ms == expires_ms
        assert [record.runs, replace(record, cleared=True).runs] == [True, False]
    assert begun.at_centre(said(TaskState.SUCCEEDED), 5).over_ms == 5
