"""What a task leaves for people: report.html, summary.json and TensorBoard events."""

from __future__ import annotations

import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

from central_server.report import render
from central_server.scalars import Scalars
from central_server.store import TaskRecord
from central_server.summary import Summary, summarise
from trellis.flower.backchannel import FleetDevice, Outcome, RoundRecord
from trellis.payloads import ExecutionState, Reason, TaskState

VOID = {"meta", "br"}


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


EVIL = "<script>alert('x')</script>"


def history() -> list[RoundRecord]:
    lost = Outcome(region="eu-1", device="cam-2", phase="train", outcome="lost", reason=EVIL)
    good = Outcome(region="eu-1", device="cam-1", phase="train", outcome="replied", samples=10)
    return [
        RoundRecord(round=1, loss=2.0, accuracy=0.25, selected=2, replied=1, failed=1, outcomes=(good, lost)),
        RoundRecord(round=2, loss=1.0, accuracy=0.5, selected=1, replied=1, outcomes=(good,), duration_s=0.5),
        RoundRecord(round=3, loss=0.5, selected=1, replied=1),
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


def test_the_report_shows_curves_rounds_devices_and_failures(tmp_path: Path) -> None:
    page = Page(render(summary(tmp_path, history()), history()))
    assert page.tags.count("svg") == 2
    assert page.tags.count("circle") == 5  # three losses, two accuracies
    for expected in ("Task digits-mlp", "12.5 s", "accuracy 0.6250", "cam-1", "1437", "cam-2", "lost", EVIL):
        assert expected in page.shown


def test_the_report_needs_no_script_and_no_network(tmp_path: Path) -> None:
    text = render(summary(tmp_path, history()), history())
    page = Page(text)
    assert not {"script", "link", "img", "iframe"} & set(page.tags)
    assert not {name for name, _ in page.attributes} & {"src", "href", "onload"}
    assert "http" not in text


def test_a_task_without_a_round_has_a_report_too(tmp_path: Path) -> None:
    page = Page(render(summary(tmp_path, []), []))
    assert page.shown.count("Not measured.") == 2
    assert "svg" not in page.tags


def test_a_single_round_makes_a_curve_of_one_point(tmp_path: Path) -> None:
    rounds = history()[:1]
    assert Page(render(summary(tmp_path, rounds), rounds)).tags.count("circle") == 2


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
