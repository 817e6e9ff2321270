"""The page: what came of the task on top, then its curves, what failed, its devices and its rounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from central_server.report.curves import charts
from central_server.report.failures import failures
from central_server.report.markup import Html, element, foreign, section, table
from central_server.summary import Summary
from trellis.descriptor import TaskDescriptor
from trellis.durations import in_words
from trellis.flower.backchannel import Outcome, RoundRecord
from trellis.payloads import ExecutionState

_STYLE = Path(__file__).with_name("report.css")
_MOST_ROUNDS = 500


def render(summary: Summary, history: Sequence[RoundRecord], descriptor: TaskDescriptor) -> str:
    """Return the page."""
    title = f"Task {summary.task}: {summary.state}"
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        # Whatever a name holds: nothing is run and nothing is fetched.
        element(
            "meta",
            http_equiv="Content-Security-Policy",
            content="default-src 'none'; style-src 'unsafe-inline'",
        ),
        element("title", title),
        element("style", Html(_STYLE.read_text(encoding="utf-8"))),
    )
    body = element(
        "body",
        element("header", *_heading(summary, descriptor)),
        element(
            "main",
            _tiles(summary, history, descriptor),
            charts(history),
            failures(summary.devices, history),
            _devices(summary, history),
            _rounds(history),
        ),
        element("footer", *_footer(summary)),
    )
    return f"<!DOCTYPE html>\n{element('html', head, body, lang='en')}\n"


def _heading(summary: Summary, descriptor: TaskDescriptor) -> list[Html]:
    data = descriptor.data
    facts = {
        "Model": descriptor.model.name,
        "Data": f"{data.name}, {'×'.join(map(str, data.shape))}, {data.classes} classes",
        "Strategy": descriptor.strategy.name,
        "Regions": _some(descriptor.regions, 8),
        "Revision": str(summary.revision),
        "Posted": _moment(summary.posted),
        "Ended": _moment(summary.ended),
    }
    lines = [
        element("p", "Trellis task report", class_="kicker"),
        element(
            "div",
            element("h1", summary.task),
            element("span", str(summary.state), class_=f"state {summary.state}"),
            class_="top",
        ),
    ]
    if summary.reason is not None:
        lines.append(element("p", foreign(summary.reason.message), class_=f"reason {summary.state}"))
    pairs = [element("div", element("dt", name), element("dd", value)) for name, value in facts.items()]
    return [*lines, element("dl", *pairs, class_="facts")]


def _tiles(summary: Summary, history: Sequence[RoundRecord], descriptor: TaskDescriptor) -> Html:
    durations = sorted(one.duration_s for one in history)
    middle = f"median round {in_words(durations[len(durations) // 2])}" if durations else ""
    rejected = sum(one.state is ExecutionState.REJECTED for one in summary.devices)
    first = next((one for one in history if one.accuracy is not None), None)
    up, down = sum(one.bytes_up for one in history), sum(one.bytes_down for one in history)
    share = "–" if summary.accuracy is None else f"{summary.accuracy:.2%}"
    begun = next((one for one in history if one.loss is not None), None)
    tiles = [
        (
            "Accuracy",
            share,
            f"{first.accuracy:.2%} after round {first.round}" if first else "not measured",
        ),
        ("Loss", _number(summary.loss), f"{_number(begun.loss)} after round {begun.round}" if begun else ""),
        ("Rounds", str(summary.rounds), f"of {descriptor.train.rounds}"),
        ("Time", in_words(summary.seconds), middle),
        (
            "Devices",
            str(len(summary.devices) - rejected),
            f"{rejected} rejected" if rejected else "took part",
        ),
        ("Tensors moved", _bytes(up + down), f"{_bytes(up)} up, {_bytes(down)} down"),
    ]
    return element(
        "dl",
        *(
            element("div", element("dt", name), element("dd", value), element("dd", more))
            for name, value, more in tiles
        ),
        class_="tiles",
    )


@dataclass
class _Part:
    """One device's part in all rounds."""

    state: str = "–"
    samples: int | None = None
    loss: float | None = None
    asked: int = 0
    replied: int = 0


def _devices(summary: Summary, history: Sequence[RoundRecord]) -> Html:
    parts = {(one.region, one.device): _Part(_word(one.state), one.samples) for one in summary.devices}
    for outcome in (outcome for one in history for outcome in one.outcomes if outcome.phase == "train"):
        _count(parts.setdefault((outcome.region, outcome.device), _Part()), outcome)
    rows = [
        [
            device,
            region,
            part.state,
            f"{part.replied} of {part.asked}" if part.asked else "–",
            "–" if part.samples is None else f"{part.samples:,}",
            _number(part.loss),
        ]
        for (region, device), part in sorted(parts.items())
    ]
    head = {
        "Device": "text",
        "Region": "text",
        "State": "text",
        "Updates taken": "",
        "Samples": "",
        "Last loss": "",
    }
    return _section("Devices", "", head, rows)


def _count(part: _Part, outcome: Outcome) -> None:
    part.asked += 1
    if outcome.outcome == "replied":
        part.replied += 1
        part.samples = outcome.samples if part.samples is None else part.samples
        part.loss = outcome.loss


def _rounds(history: Sequence[RoundRecord]) -> Html:
    head = ("Round", "Loss", "Accuracy", "Selected", "Replied", "Failed", "Standby", "Time", "Up", "Down")
    rows = [
        [
            str(one.round),
            _number(one.loss),
            "–" if one.accuracy is None else f"{one.accuracy:.2%}",
            str(one.selected),
            str(one.replied),
            str(one.failed),
            str(one.standby),
            in_words(one.duration_s),
            _bytes(one.bytes_up),
            _bytes(one.bytes_down),
        ]
        for one in history[-_MOST_ROUNDS:]
    ]
    left = len(history) - len(rows)
    note = f"the last {len(rows)}; all {len(history)} stand in metrics.jsonl" if left else ""
    return _section("Rounds", note, dict.fromkeys(head, ""), rows)


def _section(title: str, note: str, head: dict[str, str], rows: Sequence[Sequence[str]]) -> Html:
    return section(title, len(rows), note, table(title, head, rows))


def _footer(summary: Summary) -> list[Html]:
    model = "model.safetensors is the model, " if summary.model is not None else ""
    return [
        element(
            "p",
            f"Beside this page: {model}metrics.jsonl has every round with what became of each device, "
            "summary.json this page's numbers, log.jsonl what the machines said.",
        )
    ]


def _word(state: ExecutionState | None) -> str:
    # The page is written before devices have heard of the end.
    here = {None: "–", ExecutionState.IN_PROGRESS: "took part", ExecutionState.QUEUED: "waited"}
    return here.get(state) or str(state).lower().replace("_", " ")


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def _bytes(count: int) -> str:
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.3g} {unit}" if count < 999.5 * size else f"{count / size:,.0f} {unit}"
    return f"{count} B"


def _moment(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _some(names: Sequence[str], most: int) -> str:
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")
