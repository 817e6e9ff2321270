"""What a task leaves for people: report.html, summary.json and TensorBoard events."""

from __future__ import annotations

import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

from central_server.report.page import render
from central_server.scalars import Scalars
from central_server.store import TaskRecord
from central_server.summary import Summary, summarise
from tests.central_server.parts import descriptor
from trellis.flower.backchannel import FleetDevice, Outcome, RoundRecord
from trellis.payloads import ExecutionState, Reason, TaskState

VOID = {"meta"}


class Page(HTMLParser):
    """Checks that every element is closed in order, and keeps what the page shows."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.shown = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.shown += data + " "


EVIL = "<script>alert('x')</script><img src=http://127.0.0.1:9/x onerror=alert(1)>\" & '"


def history() -> list[RoundRecord]:
    lost = Outcome(region="eu-1", device="cam-2", phase="train", outcome="lost", reason=EVIL)
    good = Outcome(region="eu-1", device="cam-1", phase="train", outcome="replied", samples=10)
    return [
        RoundRecord(round=1, loss=2.0, accuracy=0.25, selected=2, replied=1, failed=1, outcomes=(good, lost)),
        RoundRecord(round=2, loss=1.0, accuracy=0.5, selected=1, replied=1, outcomes=(good,), duration_s=0.5),
        RoundRecord(round=3, loss=0.5, selected=1, replied=1, standby=2),
    ]


def summary(folder: Path, rounds: list[RoundRecord]) -> Summary:
    record = TaskRecord(
        task="digits-mlp",
        revision=1,
        state=TaskState.FAILED,
        since=13_500,
        posted=1_000,
        round=len(rounds),
        rounds=5,
        reason=Reason(code="quorum", message=EVIL),
        metrics={"accuracy": 0.625} if rounds else {},
    )
    device = FleetDevice(
        region="eu-1", device="cam-1", online=True, state=ExecutionState.SUCCEEDED, samples=1437
    )
    return summarise(record, rounds, [device], folder)


def page(folder: Path, rounds: list[RoundRecord]) -> Page:
    return Page(render(summary(folder, rounds), rounds, descriptor()))


def labels(found: Page) -> list[str]:
    """What is read out in place of the charts and the scrolling tables."""
    return [value or "" for name, value in found.attributes if name == "aria-label"]


def test_the_report_shows_curves_participants_durations_devices_and_failures(tmp_path: Path) -> None:
    found = page(tmp_path, history())
    assert labels(found)[:4] == [
        "Loss by round, rounds 1 to 3: loss from 2 to 0.5.",
        "Accuracy by round, rounds 1 to 3: accuracy from 25.00% to 50.00%.",
        "Participants by round: 4 selected over all rounds; 3 replied, 1 lost, 2 standby.",
        "Seconds a round: 0.00 s the median, 0.50 s the longest.",
    ]
    for expected in ("digits-mlp", "12.5 s", "62.50%", "1,437", "eu-1/cam-2 lost while training, round 1"):
        assert expected in found.shown
    assert found.shown.count(EVIL) == 2  # the task's reason, and cam-2's


def test_where_it_was_measured_is_told_apart(tmp_path: Path) -> None:
    metrics = {"train_loss": 3.0, "eval_loss": 2.5, "server_loss": 2.25}
    rounds = [one.model_copy(update={"metrics": metrics}) for one in history()]
    found = page(tmp_path, rounds)
    assert labels(found)[0] == (
        "Loss by round, rounds 1 to 3: devices, evaluated from 2.5 to 2.5; devices, in training from 3 to 3; "
        "server from 2.25 to 2.25."
    )


def test_the_report_needs_no_script_and_no_network(tmp_path: Path) -> None:
    found = page(tmp_path, history())
    assert not {"script", "link", "img", "iframe", "a"} & set(found.tags)
    assert not {name for name, _ in found.attributes} & {"src", "href", "onload", "onerror"}
    policy = dict(found.attributes)["content"]
    assert policy == "default-src 'none'; style-src 'unsafe-inline'"


def test_a_task_without_a_round_has_a_report_too(tmp_path: Path) -> None:
    found = page(tmp_path, [])
    assert "No round was finished." in found.shown
    assert "svg" not in found.tags


def test_a_task_without_metrics_says_so(tmp_path: Path) -> None:
    found = page(tmp_path, [one.model_copy(update={"loss": None, "accuracy": None}) for one in history()])
    assert found.shown.count("Not measured.") == 2
    assert found.tags.count("svg") == 2


def test_the_same_failure_in_several_rounds_is_one_entry_and_the_worst_comes_first(tmp_path: Path) -> None:
    parts = [
        Outcome(region="eu-1", device="cam-2", phase="train", outcome="late"),
        Outcome(region="eu-1", device="cam-3", phase="evaluate", outcome="failed", reason="no space left"),
        Outcome(region="eu-1", device="cam-4", phase="train", outcome="superseded"),
    ]
    there = {1: parts, 2: parts[1:], 3: parts[1:], 7: parts[:2]}
    rounds = [RoundRecord(round=number, outcomes=tuple(found)) for number, found in there.items()]
    shown = page(tmp_path, rounds).shown
    worst = shown.index("eu-1/cam-3 evaluation failed, rounds 1–3, 7 no space left")
    assert worst < shown.index("eu-1/cam-2 trained past the deadline, rounds 1, 7 It was there, and silent")
    assert "eu-1/cam-4" not in shown


def test_a_rejected_device_is_named_with_its_reason(tmp_path: Path) -> None:
    reason = Reason(code="data", message="holds 3 samples")
    whole = summary(tmp_path, history())
    rejected = whole.devices[0].model_copy(update={"state": ExecutionState.REJECTED, "reason": reason})
    found = Page(render(whole.model_copy(update={"devices": (rejected,)}), history(), descriptor()))
    assert "eu-1/cam-1 did not take part holds 3 samples" in found.shown


def test_more_rounds_than_a_chart_has_room_for_are_thinned_out_and_all_are_counted(tmp_path: Path) -> None:
    rounds = [RoundRecord(round=number, loss=1.0, selected=2, replied=2) for number in range(1, 1001)]
    found = page(tmp_path, rounds)
    assert "One round in 3 is drawn." in found.shown
    assert "2000 selected over all rounds; 2000 replied." in labels(found)[1]
    assert "the last 500; all 1000 stand in metrics.jsonl" in found.shown
    assert len(render(summary(tmp_path, rounds), rounds, descriptor())) < 500_000


def test_the_summary_has_the_final_numbers(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"x")
    found = summary(tmp_path, history())
    assert (found.accuracy, found.loss) == (0.625, 0.5)  # as reported last; the last round's
    assert (found.seconds, found.rounds, found.model) == (12.5, 3, str(tmp_path / "model.safetensors"))
    assert [(one.round, one.replied, one.failed) for one in found.history] == [
        (1, 1, 1),
        (2, 1, 0),
        (3, 1, 0),
    ]
    assert found.devices[0].samples == 1437


def test_tensorboard_reads_the_events(tmp_path: Path) -> None:
    scalars = Scalars(tmp_path)
    for record in history():
        scalars.write(record)
    scalars.close()
    from tensorboard.backend.event_processing.event_accumulator import (  # noqa: PLC0415 - slow to import
        EventAccumulator,
    )

    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("model/loss")] == [(1, 2.0), (2, 1.0), (3, 0.5)]
    assert [e.step for e in events.Scalars("model/accuracy")] == [1, 2]


def test_without_tensorboard_it_is_said_once(tmp_path: Path) -> None:
    code = """
import logging, sys
sys.modules["tensorboard"] = None
logging.basicConfig(format="%(message)s", stream=sys.stdout)
from pathlib import Path
from central_server.scalars import Scalars
from trellis.flower.backchannel import RoundRecord
for name in ("one", "two"):
    scalars = Scalars(Path(sys.argv[1], name))
    scalars.write(RoundRecord(round=1, loss=1.0))
    scalars.close()
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.count("pip install 'trellis-fl[server]'") == 1
    assert list(tmp_path.iterdir()) == []


def test_the_service_loads_neither_torch_nor_tensorboard_at_import() -> None:
    code = """
import sys, central_server, central_server.service, central_server.command
print({"torch", "tensorflow", "sklearn", "tensorboard", "flwr"} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
