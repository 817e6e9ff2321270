"""docs/topics.md against the topics and the payloads' models."""

from __future__ import annotations

import pytest
from pages import codes, read, rows, section, table

from trellis.envelope import MAX_SIGNATURES, PAYLOAD_TYPE, Envelope
from trellis.identifiers import PATTERN
from trellis.mqtt import BrokerSettings
from trellis.payloads import (
    MAX_PAYLOAD_BYTES,
    CentralTask,
    Execution,
    ExecutionState,
    Info,
    Log,
    Payload,
    Phase,
    Progress,
    Round,
    RoundPhase,
    State,
    TaskState,
    TaskStatus,
)
from trellis.task_log import LINES_A_SECOND
from trellis.topics import DEFAULT_BASE, Kind

PAGE = read("docs/topics.md")
MODELS = (State, CentralTask, Round, TaskStatus, Info, Execution, Progress, Log)
PAYLOADS = {
    Kind.CENTRAL_STATE: State,
    Kind.CENTRAL_TASK_STATE: CentralTask,
    Kind.CENTRAL_TASK_ROUND: Round,
    Kind.GATEWAY_STATE: State,
    Kind.GATEWAY_EXECUTION: Execution,
    Kind.GATEWAY_LOG: Log,
    Kind.DESCRIPTOR: Envelope,
    Kind.TASK_STATUS: TaskStatus,
    Kind.TASK_ROUND: Round,
    Kind.DEVICE_STATE: State,
    Kind.DEVICE_INFO: Info,
    Kind.EXECUTION: Execution,
    Kind.PROGRESS: Progress,
    Kind.LOG: Log,
}


def names(model: type[Payload] | type[Envelope]) -> list[str]:
    return [field.alias or name for name, field in model.model_fields.items()]


def described(heading: str) -> list[str]:
    listed = rows(section(PAGE, heading))
    assert all(row[1] for row in listed)
    return [codes(row[0])[0] for row in listed]


def test_the_table_of_topics_is_the_codes() -> None:
    listed = {codes(row[0])[0]: row[1] for row in table(PAGE, "topics")}
    assert list(listed) == [kind.value for kind in Kind]
    for kind, payload in listed.items():
        model = PAYLOADS[Kind(kind)].__name__
        assert payload.startswith(f"[{model}](#{model.lower()})")


def test_the_writer_is_whose_name_the_topic_bears() -> None:
    for topic, _, _, writer in table(PAGE, "topics"):
        due = "device" if "{device}" in topic else "gateway" if "{region}" in topic else "server"
        assert writer == due


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_every_field_of_a_payload_is_described(model: type[Payload]) -> None:
    shared = names(Payload)
    assert described(model.__name__) == [name for name in names(model) if name not in shared]


def test_the_fields_of_all_payloads_and_of_the_envelope_are_described() -> None:
    assert described("All payloads") == names(Payload)
    assert described("Envelope") == names(Envelope)


@pytest.mark.parametrize(
    ("heading", "field", "values"),
    [
        ("CentralTask", "state", TaskState),
        ("Round", "phase", RoundPhase),
        ("Execution", "state", ExecutionState),
        ("Execution", "phase", Phase),
    ],
)
def test_every_state_and_phase_is_named(heading: str, field: str, values: type[Phase]) -> None:
    (row,) = [row for row in rows(section(PAGE, heading)) if codes(row[0]) == [field]]
    assert codes(row[1]) == [value.value for value in values]


def test_what_the_text_says_in_numbers_is_the_codes() -> None:
    assert f"The base is `{DEFAULT_BASE}`" in PAGE
    assert PATTERN == "[a-z0-9][a-z0-9-]{0,62}"
    assert "1 to 63 of `a-z`, `0-9` and `-`" in PAGE
    assert f"at most {MAX_PAYLOAD_BYTES // 1024} KiB" in PAGE
    assert f"the keepalive of {BrokerSettings('mqtt://localhost', 'x').keepalive_s} s" in PAGE
    assert f"`{PAYLOAD_TYPE}`" in PAGE
    assert f"up to {MAX_SIGNATURES} of `keyid` and `sig`" in PAGE
    assert LINES_A_SECOND == 10
