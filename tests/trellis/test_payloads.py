"""Payloads: what is written is read again, and nothing but a `PayloadError` comes of anything else."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trellis import payloads
from trellis.errors import PayloadError
from trellis.identifiers import PATTERN
from trellis.payloads import MAX_PAYLOAD_BYTES, Execution, ExecutionState, Log, Payload, Round, State

KINDS: list[type[Payload]] = [
    payloads.State,
    payloads.Info,
    payloads.Execution,
    payloads.Progress,
    payloads.Log,
    payloads.Round,
    payloads.CentralTask,
    payloads.TaskStatus,
]
COUNTS = st.integers(0, 2**53)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
TEXTS = st.text(max_size=20)
MOMENTS = st.integers(0, 253_402_214_400_000)
NAMES = st.from_regex(PATTERN, fullmatch=True)
REASONS = st.builds(payloads.Reason, code=TEXTS, message=TEXTS)
METRICS = st.dictionaries(TEXTS, NUMBERS, max_size=3)


def maybe(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | values


BUILT = st.one_of(
    st.builds(
        payloads.State,
        ts=MOMENTS,
        state=st.sampled_from(payloads.Presence),
        boot_id=st.text(min_size=1, max_size=64),
        since=MOMENTS,
        api=maybe(TEXTS),
        parent=maybe(TEXTS),
    ),
    st.builds(
        payloads.Info,
        ts=MOMENTS,
        version=TEXTS,
        python=TEXTS,
        platform=TEXTS,
        machine=TEXTS,
        cpus=COUNTS,
        memory_mb=COUNTS,
        backends=st.lists(TEXTS, max_size=3).map(tuple),
        data=maybe(
            st.builds(
                payloads.DataInfo,
                name=TEXTS,
                samples=COUNTS,
                shape=st.lists(COUNTS, max_size=4).map(tuple),
                classes=COUNTS,
            )
        ),
    ),
    st.builds(
        payloads.Execution,
        ts=MOMENTS,
        state=st.sampled_from(ExecutionState),
        phase=maybe(st.sampled_from(payloads.Phase)),
        attempt=COUNTS,
        version=COUNTS,
        revision=COUNTS,
        reason=maybe(REASONS),
        round=maybe(COUNTS),
        flower=maybe(
            st.builds(payloads.FlowerLinkage, node_id=COUNTS, nonce=maybe(TEXTS), message_id=maybe(TEXTS))
        ),
        samples=maybe(COUNTS),
        backend=maybe(TEXTS),
    ),
    st.builds(
        payloads.Progress,
        round=COUNTS,
        epoch=COUNTS,
        epochs=COUNTS,
        step=COUNTS,
        steps=COUNTS,
        loss=maybe(NUMBERS),
        samples=COUNTS,
        eta_s=st.floats(0, 1e300),
    ),
    st.builds(
        payloads.Log,
        level=st.sampled_from(["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"]),
        logger=TEXTS,
        message=TEXTS,
    ),
    st.builds(
        payloads.Round,
        round=COUNTS,
        rounds=COUNTS,
        phase=st.sampled_from(payloads.RoundPhase),
        announced=COUNTS,
        lost=COUNTS,
        loss=maybe(NUMBERS),
        metrics=METRICS,
        duration_s=maybe(st.floats(0, 1e300)),
        bytes_up=COUNTS,
    ),
    st.builds(
        payloads.CentralTask,
        task=NAMES,
        revision=COUNTS,
        state=st.sampled_from(payloads.TaskState),
        since=MOMENTS,
        round=COUNTS,
        rounds=COUNTS,
        reason=maybe(REASONS),
        metrics=METRICS,
    ),
    st.builds(
        payloads.TaskStatus,
        task=NAMES,
        revision=COUNTS,
        desired=st.sampled_from(["run", "canceled"]),
        central=maybe(st.sampled_from(payloads.TaskState)),
        executions=st.dictionaries(st.sampled_from(ExecutionState), COUNTS),
        verdict=maybe(REASONS),
    ),
)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
FIELDS = sorted({field.alias or name for kind in KINDS for name, field in kind.model_fields.items()})
GOOD_STATE = {"schema": 1, "ts": 1, "state": "online", "boot_id": "b", "since": 1}


@given(BUILT)
def test_every_payload_is_json_and_reads_back_the_same(payload: Payload) -> None:
    wire = payload.to_bytes()
    value = json.loads(wire.decode("utf-8"), parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert value["schema"] == 1
    assert type(payload).parse(wire) == payload


@given(BUILT, st.dictionaries(st.text(min_size=1, max_size=5).map("x-".__add__), JSON_VALUES, max_size=3))
def test_fields_of_a_newer_peer_are_ignored(payload: Payload, more: dict[str, Any]) -> None:
    wire = json.loads(payload.to_bytes()) | more
    assert type(payload).parse(json.dumps(wire).encode()) == payload


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(KINDS), st.dictionaries(st.sampled_from(FIELDS), JSON_VALUES, max_size=8))
def test_only_payload_errors_come_out_of_any_json(kind: type[Payload], value: dict[str, Any]) -> None:
    try:
        parsed = kind.parse(json.dumps(value).encode())
    except PayloadError as error:
        str(error).encode()
    else:
        assert kind.parse(parsed.to_bytes()) == parsed


@given(st.sampled_from(KINDS), st.binary(max_size=200))
def test_only_payload_errors_come_out_of_any_bytes(kind: type[Payload], data: bytes) -> None:
    with pytest.raises(PayloadError):
        kind.parse(data)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ts": -1}, "ts: input should be greater than or equal to 0, got -1"),
        ({"ts": "soon"}, "ts: input should be a valid integer, unable to parse string as an integer"),
        # 9999-12-31T00:00:00Z, the last moment that every time zone has in its calendar.
        ({"ts": 253402214400001}, "ts: input should be less than or equal to 253402214400000"),
        ({"since": 2**53}, "since: input should be less than or equal to 253402214400000"),
        ({"schema": 2}, "schema: input should be 1, got 2"),
        ({"state": "asleep"}, "state: input should be 'online' or 'offline', got \"asleep\""),
        ({"boot_id": "b" * 65}, "boot_id: string should have at most 64 characters"),
        ({"boot_id": None}, "boot_id: input should be a valid string, got null"),
        ({"since": float("nan")}, "since: input should be a finite number, got NaN"),
    ],
)
def test_a_wrong_field_is_named_with_what_came_and_what_was_due(change: dict[str, Any], message: str) -> None:
    with pytest.raises(PayloadError) as caught:
        State.parse(json.dumps(GOOD_STATE | change).encode())
    assert message in str(caught.value)


@pytest.mark.parametrize("word", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_a_number_that_is_not_finite_is_refused(word: str) -> None:
    for field in (f'"loss":{word}', f'"metrics":{{"loss":{word}}}', f'"duration_s":{word}'):
        with pytest.raises(PayloadError, match="finite number"):
            Round.parse(f'{{"round":1,"rounds":2,"phase":"train",{field}}}'.encode())


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"online",
        b"\xff\xfe",
        b'{"state":"\xff"}',
        b'{"state":"\\ud800"}',
        b"[" * 100_000,
        b'{"a":' * 50_000,
        json.dumps(GOOD_STATE).encode()[:-1],
        json.dumps(GOOD_STATE).encode() + b"x",
        b'{"ts":' + b"9" * 100_000 + b"}",
        b"null",
        b"[]",
        b'"online"',
    ],
)
def test_what_is_no_json_object_of_the_schema_is_a_payload_error(data: bytes) -> None:
    with pytest.raises(PayloadError, match="State payload"):
        State.parse(data)


def test_unknown_fields_may_nest_deeply_only_to_a_bound() -> None:
    data = b'{"schema":1,"x":' + b"[" * 1000 + b"]" * 1000 + b"}"
    with pytest.raises(PayloadError):
        State.parse(data)


def test_a_payload_beyond_256_kb_is_refused_before_it_is_parsed() -> None:
    data = json.dumps(GOOD_STATE | {"x": "y" * MAX_PAYLOAD_BYTES}).encode()
    with pytest.raises(PayloadError, match=f"has {len(data)} bytes, at most 262144"):
        State.parse(data)


def test_the_faults_of_garbage_are_cut_off_and_counted() -> None:
    metrics = {str(number): "x" for number in range(5000)}
    wire = {"round": 1, "rounds": 1, "phase": "train", "metrics": metrics}
    with pytest.raises(PayloadError, match="and 4900 faults more") as caught:
        Round.parse(json.dumps(wire).encode())
    assert len(caught.value.faults) == 101
    assert len(str(caught.value)) < 30_000


def test_free_text_with_a_lone_surrogate_is_sent_with_a_question_mark() -> None:
    # What os.fsdecode makes of a file name that is not UTF-8.
    log = Log(level="ERROR", logger="device", message="no such file: caf\udce9.npz")
    assert Log.parse(log.to_bytes()).message == "no such file: caf?.npz"


def test_which_execution_states_end_a_task() -> None:
    assert {state for state in ExecutionState if not state.ended} == {
        ExecutionState.QUEUED,
        ExecutionState.IN_PROGRESS,
    }
    assert Execution(state=ExecutionState.QUEUED).attempt == 1
