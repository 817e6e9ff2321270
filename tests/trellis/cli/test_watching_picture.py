"""Messages folded into a picture: twice, late, removed, unreadable."""

from __future__ import annotations

from trellis.cli.watching.picture import Picture, fold
from trellis.mqtt.messages import BusMessage
from trellis.payloads import (
    CentralTask,
    Execution,
    ExecutionState,
    Info,
    Log,
    Payload,
    Phase,
    Presence,
    Progress,
    Reason,
    Round,
    RoundPhase,
    State,
    TaskState,
    TaskStatus,
)
from trellis.topics import Topics

TOPICS = Topics()
EXECUTION = "eu-1/devices/cam-1/tasks/digits/execution"


def said(picture: Picture, topic: str, payload: Payload | bytes) -> Picture:
    raw = payload if isinstance(payload, bytes) else payload.to_bytes()
    return fold(picture, BusMessage(f"trellis/v1/{topic}", raw, retain=False), TOPICS)


def online(since: int = 1) -> State:
    return State(state=Presence.ONLINE, boot_id="b", since=since)


def execution(
    version: int, phase: Phase, *, ts: int, state: ExecutionState = ExecutionState.IN_PROGRESS
) -> Execution:
    return Execution(state=state, phase=phase, version=version, ts=ts, samples=10)


def a_round(number: int, phase: RoundPhase, *, ts: int) -> Round:
    return Round(round=number, rounds=3, phase=phase, ts=ts, selected=2, replied=2, loss=0.5)


def test_server_gateways_and_devices_are_there_by_their_states() -> None:
    picture = said(Picture(), "central/state", online())
    picture = said(picture, "eu-1/gateway/state", online())
    picture = said(picture, "us-1/devices/cam-9/state", online())
    assert picture.server == online().model_copy(update={"ts": picture.server.ts if picture.server else 0})
    assert picture.regions == ["eu-1", "us-1"]
    assert picture.devices["us-1", "cam-9"].online


def test_a_last_will_makes_a_device_offline() -> None:
    picture = said(Picture(), "eu-1/devices/cam-1/state", online())
    picture = said(picture, "eu-1/devices/cam-1/state", State(state=Presence.OFFLINE, boot_id="b", since=2))
    assert not picture.devices["eu-1", "cam-1"].online


def test_an_older_execution_that_arrives_late_changes_nothing() -> None:
    picture = said(Picture(), EXECUTION, execution(5, Phase.UPLOADED, ts=20))
    late = said(picture, EXECUTION, execution(4, Phase.TRAINING, ts=10))
    assert late.devices["eu-1", "cam-1"].executions["digits"].phase is Phase.UPLOADED


def test_an_execution_that_starts_again_at_a_lower_version_is_taken() -> None:
    picture = said(Picture(), EXECUTION, execution(5, Phase.UPLOADED, ts=20))
    again = said(picture, EXECUTION, execution(1, Phase.VERIFYING, ts=30))
    assert again.devices["eu-1", "cam-1"].executions["digits"].phase is Phase.VERIFYING


def test_progress_goes_when_its_execution_ends() -> None:
    progress = Progress(round=1, epoch=1, epochs=1, step=5, steps=9, samples=10, eta_s=1)
    picture = said(Picture(), EXECUTION, execution(1, Phase.TRAINING, ts=1))
    picture = said(picture, "eu-1/devices/cam-1/tasks/digits/progress", progress)
    assert picture.devices["eu-1", "cam-1"].progress["digits"].step == 5
    ended = execution(2, Phase.UPLOADED, ts=2, state=ExecutionState.SUCCEEDED)
    assert said(picture, EXECUTION, ended).devices["eu-1", "cam-1"].progress == {}


def test_a_device_shows_what_goes_on_before_what_has_ended() -> None:
    picture = said(Picture(), EXECUTION, execution(1, Phase.TRAINING, ts=1))
    other = execution(1, Phase.UPLOADED, ts=9, state=ExecutionState.FAILED)
    picture = said(picture, "eu-1/devices/cam-1/tasks/older/execution", other)
    current = picture.devices["eu-1", "cam-1"].current()
    assert current is not None
    assert current[0] == "digits"


def test_rounds_are_kept_once_done_and_a_late_one_changes_nothing() -> None:
    topic = "central/tasks/digits/round"
    picture = said(Picture(), topic, a_round(1, RoundPhase.TRAIN, ts=1))
    assert picture.tasks["digits"].done == {}
    picture = said(picture, topic, a_round(1, RoundPhase.DONE, ts=2))
    picture = said(picture, topic, a_round(2, RoundPhase.TRAIN, ts=3))
    picture = said(picture, topic, a_round(1, RoundPhase.DONE, ts=2))
    task = picture.tasks["digits"]
    assert list(task.done) == [1]
    assert task.round is not None
    assert task.round.round == 2


def test_an_empty_payload_removes() -> None:
    picture = said(Picture(), EXECUTION, execution(1, Phase.TRAINING, ts=1))
    picture = said(
        picture,
        "central/tasks/digits/state",
        CentralTask(task="digits", revision=1, state=TaskState.POSTED, since=1, rounds=3),
    )
    picture = said(picture, "eu-1/gateway/state", online())
    for topic in (EXECUTION, "central/tasks/digits/state", "eu-1/gateway/state"):
        picture = said(picture, topic, b"")
    assert (picture.tasks, picture.gateways) == ({}, {})
    assert picture.devices["eu-1", "cam-1"].current() is None


def test_a_cleared_device_state_removes_the_device() -> None:
    picture = said(Picture(), "eu-1/devices/cam-1/state", online())
    assert said(picture, "eu-1/devices/cam-1/state", b"").devices == {}


def test_what_cannot_be_read_is_counted_and_changes_nothing_else() -> None:
    picture = said(Picture(), "central/state", online())
    after = said(picture, "central/state", b"{")
    after = said(after, "central/nonsense", b"{}")
    assert after.unreadable == 2
    assert after.server == picture.server


def test_warnings_are_kept_and_information_is_not() -> None:
    topic = "eu-1/devices/cam-1/tasks/digits/log"
    picture = said(Picture(), topic, Log(level="INFO", logger="x", message="fine"))
    for n in range(7):
        picture = said(picture, topic, Log(level="ERROR", logger="x", message=f"bad {n}\n  at\nwhy {n}"))
    assert [line.brief for line in picture.logs] == [f"bad {n} … why {n}" for n in range(2, 7)]


def test_a_gateways_warnings_are_kept_under_its_name() -> None:
    line = Log(level="WARNING", logger="x", message="its run is over")
    picture = said(Picture(), "eu-1/gateway/tasks/digits/log", line)
    assert [(line.region, line.device, line.brief) for line in picture.logs] == [
        ("eu-1", "gateway", "its run is over")
    ]


def test_a_regions_status_and_a_devices_info_are_taken() -> None:
    verdict = Reason(code="signature", message="signed by a stranger")
    status = TaskStatus(task="digits", revision=1, desired="run", verdict=verdict)
    picture = said(Picture(), "eu-1/tasks/digits/status", status)
    info = Info(version="1", python="3", platform="l", machine="x", cpus=1, memory_mb=1, backends=("torch",))
    picture = said(picture, "eu-1/devices/cam-1/info", info)
    assert picture.tasks["digits"].statuses["eu-1"].verdict == verdict
    assert picture.devices["eu-1", "cam-1"].info is not None


def test_a_region_that_aggregates_has_rounds_of_its_own_until_its_topics_are_cleared() -> None:
    picture = said(Picture(), "eu-1/tasks/digits/round", a_round(1, RoundPhase.DONE, ts=10))
    assert dict(picture.tasks["digits"].regional) == {}
    at_work = said(picture, "eu-1/gateway/tasks/digits/execution", execution(1, Phase.TRAINING, ts=11))
    assert list(at_work.tasks["digits"].regional["eu-1"].done) == [1]
    late = said(at_work, "eu-1/tasks/digits/round", a_round(1, RoundPhase.TRAIN, ts=5))
    assert late.tasks["digits"].tiers["eu-1"].round == at_work.tasks["digits"].tiers["eu-1"].round
    cleared = said(at_work, "eu-1/gateway/tasks/digits/execution", b"")
    assert "digits" not in said(cleared, "eu-1/tasks/digits/round", b"").tasks
