"""What went wrong on whom: one entry for each device, kind of failure and reason, with its rounds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from central_server.report.markup import Html, element, foreign, section
from central_server.summary import DevicePart
from trellis.flower.backchannel import RoundRecord
from trellis.payloads import ExecutionState

_MOST = 200
_UNSAID = {"lost": "It went away before it answered.", "late": "It was there, and silent at the deadline."}
_SAID = {
    ("train", "failed"): "training failed",
    ("train", "lost"): "lost while training",
    ("train", "late"): "trained past the deadline",
    ("evaluate", "failed"): "evaluation failed",
    ("evaluate", "lost"): "lost while evaluating",
    ("evaluate", "late"): "evaluated past the deadline",
}
"""A reply that another's overtook is no failure, and is not here."""


def failures(devices: Iterable[DevicePart], history: Sequence[RoundRecord]) -> Html:
    """Return the section."""
    found = [*_rejections(devices), *_failed_parts(history)]
    entries = [
        element(
            "li",
            element("strong", name),
            element("span", what, class_="what"),
            element("p", foreign(reason)) if reason else "",
        )
        for name, what, reason in found[:_MOST]
    ]
    if len(found) > _MOST:
        more = f"{len(found) - _MOST} more stand in metrics.jsonl."
        entries.append(element("li", element("span", more, class_="what")))
    return section("Failures", len(found), "", element("ul", *entries, class_="failures card"))


def _rejections(devices: Iterable[DevicePart]) -> list[tuple[str, str, str]]:
    ends = {ExecutionState.REJECTED: "did not take part", ExecutionState.FAILED: "gave up"}
    ends |= {ExecutionState.TIMED_OUT: "ran out of time"}
    return [
        (f"{one.region}/{one.device}", ends[one.state], one.reason.message if one.reason else "")
        for one in devices
        if one.state is not None and one.state in ends
    ]


def _failed_parts(history: Sequence[RoundRecord]) -> list[tuple[str, str, str]]:
    rounds: dict[tuple[str, str, str], list[int]] = {}
    for one in history:
        for part in one.outcomes:
            said = _SAID.get((part.phase, part.outcome))
            if said is not None:
                key = (f"{part.region}/{part.device}", said, part.reason or _UNSAID.get(part.outcome, ""))
                rounds.setdefault(key, []).append(one.round)
    worst_first = sorted(rounds.items(), key=lambda entry: -len(entry[1]))
    return [(name, f"{said}, {ranges(numbers)}", reason) for (name, said, reason), numbers in worst_first]


def ranges(numbers: Sequence[int]) -> str:
    """Return ascending rounds in short: `round 4`, `rounds 1–3, 7`."""
    spans: list[list[int]] = []
    for number in dict.fromkeys(numbers):
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    said = [str(first) if first == last else f"{first}–{last}" for first, last in spans]
    shown = said if len(said) <= 12 else [*said[:11], f"… {said[-1]}"]
    return f"round{'s' if numbers[0] != numbers[-1] else ''} {', '.join(shown)}"
