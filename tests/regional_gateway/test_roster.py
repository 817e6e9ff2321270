"""The roster: folded from payloads, in whatever order and how often they come."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regional_gateway.roster import MAX_EXECUTIONS, Roster
from trellis.errors import PayloadError
from trellis.payloads import Execution, ExecutionState, Info, Phase, Presence, State
from trellis.topics import Address, Kind

STATE = Address(Kind.DEVICE_STATE, region="eu-1", device="cam-7")
INFO = Address(Kind.DEVICE_INFO, region="eu-1", device="cam-7")


def execution_of(task: str = "digits", device: str = "cam-7") -> Address:
    return Address(Kind.EXECUTION, region="eu-1", device=device, task=task)


def state(presence: Presence, boot_id: str, since: int) -> bytes:
    return State(state=presence, boot_id=boot_id, since=since).to_bytes()


def execution(state: ExecutionState, version: int, ts: int = 0, phase: Phase | None = None) -> bytes:
    return Execution(state=state, version=version, ts=ts, phase=phase).to_bytes()


def test_the_will_of_the_present_process_counts() -> None:
    roster = Roster()
    roster.fold(STATE, state(Presence.ONLINE, "b1", 10))
    assert roster.devices()[0].online
    assert roster.fold(STATE, state(Presence.OFFLINE, "b1", 10))
    assert not roster.devices()[0].online


def test_the_late_will_of_an_earlier_process_is_dropped() -> None:
    roster = Roster()
    roster.fold(STATE, state(Presence.ONLINE, "b2", 20))
    assert not roster.fold(STATE, state(Presence.OFFLINE, "b1", 10))
    assert roster.devices()[0].online


def test_the_will_of_a_later_process_that_was_never_seen_counts() -> None:
    roster = Roster()
    roster.fold(STATE, state(Presence.ONLINE, "b2", 20))
    assert roster.fold(STATE, state(Presence.OFFLINE, "b3", 30))
    assert not roster.devices()[0].online


def test_an_execution_that_arrives_late_is_dropped() -> None:
    roster = Roster()
    roster.fold(execution_of(), execution(ExecutionState.SUCCEEDED, 5, ts=50))
    assert not roster.fold(execution_of(), execution(ExecutionState.IN_PROGRESS, 4, ts=40))
    assert roster.count("digits") == {ExecutionState.SUCCEEDED: 1}


def test_a_device_that_lost_its_journal_counts_from_the_start() -> None:
    roster = Roster()
    roster.fold(execution_of(), execution(ExecutionState.FAILED, 9, ts=50))
    assert roster.fold(execution_of(), execution(ExecutionState.QUEUED, 0, ts=60))
    assert roster.count("digits") == {ExecutionState.QUEUED: 1}


def test_a_repetition_changes_nothing() -> None:
    roster = Roster()
    payloads = [
        (STATE, state(Presence.ONLINE, "b1", 10)),
        (execution_of(), execution(ExecutionState.QUEUED, 1)),
    ]
    assert [roster.fold(*one) for one in payloads] == [True, True]
    assert [roster.fold(*one) for one in payloads] == [False, False]


def test_executions_are_counted_by_state_and_task() -> None:
    roster = Roster()
    for device, came in {"a": "QUEUED", "b": "IN_PROGRESS", "c": "IN_PROGRESS"}.items():
        roster.fold(execution_of(device=device), execution(ExecutionState(came), 1))
    roster.fold(execution_of("other", "a"), execution(ExecutionState.FAILED, 1))
    assert roster.count("digits") == {ExecutionState.QUEUED: 1, ExecutionState.IN_PROGRESS: 2}
    assert roster.count("other") == {ExecutionState.FAILED: 1}
    assert roster.count("unheard-of") == {}
    assert list(roster.executions("digits")) == ["a", "b", "c"]


def test_an_empty_payload_removes() -> None:
    roster = Roster()
    roster.fold(STATE, state(Presence.ONLINE, "b1", 10))
    roster.fold(execution_of(), execution(ExecutionState.QUEUED, 1))
    assert roster.fold(execution_of(), b"")
    assert not roster.fold(execution_of(), b"")
    assert roster.count("digits") == {}
    roster.fold(STATE, b"")
    assert len(roster) == 0


def test_the_active_task_is_the_one_in_progress() -> None:
    roster = Roster()
    roster.fold(execution_of("old"), execution(ExecutionState.SUCCEEDED, 1))
    roster.fold(execution_of("now"), execution(ExecutionState.IN_PROGRESS, 1, phase=Phase.TRAINING))
    (device,) = roster.devices()
    assert device.active is not None
    assert (device.active[0], device.active[1].phase) == ("now", Phase.TRAINING)


def test_a_device_cannot_fill_the_memory_with_tasks() -> None:
    roster = Roster()
    for n in range(MAX_EXECUTIONS + 10):
        roster.fold(execution_of(f"t{n}"), execution(ExecutionState.QUEUED, 1, ts=n))
    (device,) = roster.devices()
    assert len(device.executions) == MAX_EXECUTIONS
    assert roster.count("t9") == {}
    assert roster.count("t10") == {ExecutionState.QUEUED: 1}


def test_what_breaks_its_schema_is_refused_and_changes_nothing() -> None:
    roster = Roster()
    with pytest.raises(PayloadError):
        roster.fold(STATE, b"{")
    with pytest.raises(PayloadError):
        roster.fold(Address(Kind.GATEWAY_STATE, region="eu-1"), state(Presence.ONLINE, "b", 1))
    assert len(roster) == 0


def test_info_is_kept() -> None:
    info = Info(version="1", python="3", platform="l", machine="m", cpus=2, memory_mb=3, backends=("torch",))
    roster = Roster()
    roster.fold(INFO, info.to_bytes())
    assert roster.devices()[0].info == info


@given(
    st.permutations(range(6)),
    st.lists(st.integers(0, 5), max_size=10),
)
def test_the_last_version_wins_in_any_order_with_any_repetitions(order: list[int], again: list[int]) -> None:
    states = list(ExecutionState)
    roster = Roster()
    for version in [*order, *again]:
        roster.fold(execution_of(), execution(states[version], version, ts=version))
    assert roster.count("digits") == {states[5]: 1}
