"""Where a round's time goes: every HTTP request, flush and MQTT message of it, with times.

A real federation runs with `benchmarks/trace` on the PYTHONPATH of all its processes, which notes the
requests of each; an MQTT client hears the rest. The first two rounds are left out. Printed are the requests a
round by who sends them, and one round, the one of median length, step by step:

    python benchmarks/round_profile.py --rounds 20 --devices 2

The times of a request are its sender's; what the front passes on to the SuperLink lies within a device's.
"""

from __future__ import annotations

import json
import os
import statistics
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from federation import Federation
from ground import ROOT
from observer import BASE
from report import Rows, parser, run, show, write

TASK = "profiled"
WARM_UP = 2
TRACE = ROOT / "benchmarks" / "trace"


@dataclass(frozen=True)
class Event:
    """Something that a process did, or that was heard on MQTT; times in seconds since the epoch."""

    at: float
    seconds: float
    who: str
    what: str


@dataclass(frozen=True)
class Span:
    """One round, from the end of the one before."""

    number: int
    began: float
    ended: float

    def of(self, events: list[Event]) -> list[Event]:
        """Return what began in it."""
        return [event for event in events if self.began <= event.at < self.ended]


def role(argv: list[str]) -> str:
    """Return what a process is to the federation."""
    program, *rest = argv
    if program.endswith(("flwr-serverapp", "app_start.py")):
        return "ServerApp"
    if program.endswith("flower-superlink"):
        return "SuperLink"
    if rest[:1] == ["device"]:
        return f"device {rest[rest.index('--name') + 1]}" if "--name" in rest else "device"
    return rest[0] if rest and "trellis" in program else Path(program).name


def traced(file: Path) -> list[Event]:
    """Return the processes' events."""
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    return [Event(one["at"], one["s"], role(one["argv"]), one["what"]) for one in lines]


def said(heard: list[tuple[float, str, dict[str, Any]]]) -> list[Event]:
    """Return what was said on MQTT of the task, at the time that its writer gave it."""
    events = []
    for _, topic, payload in heard:
        if TASK not in topic or "ts" not in payload:
            continue
        words = [str(payload[key]) for key in ("state", "phase") if payload.get(key)]
        about = topic.removeprefix(BASE).replace(f"tasks/{TASK}/", "")
        events.append(Event(payload["ts"] / 1000, 0.0, "MQTT", f"{about}: {' '.join(words)}"))
    return events


def requests_a_round(spans: list[Span], events: list[Event]) -> Rows:
    """Return how often each request is made in a round, and how long it takes."""
    seconds: dict[tuple[str, str], list[float]] = defaultdict(list)
    for span in spans:
        for event in span.of(events):
            seconds[(event.who, event.what)].append(event.seconds)
    rows: Rows = [
        {
            "who": who,
            "what": what,
            "a_round": round(len(values) / len(spans), 2),
            "ms_median": round(statistics.median(values) * 1000, 2),
            "ms_a_round": round(sum(values) / len(spans) * 1000, 1),
        }
        for (who, what), values in seconds.items()
    ]
    return sorted(rows, key=lambda one: (one["who"], -one["ms_a_round"]))


def timeline(span: Span, events: list[Event]) -> Rows:
    """Return what happened in a round, in order."""
    return [
        {
            "from_ms": round((event.at - span.began) * 1000, 1),
            "to_ms": round((event.at + event.seconds - span.began) * 1000, 1),
            "who": event.who,
            "what": event.what,
        }
        for event in sorted(span.of(events), key=lambda event: event.at)
    ]


def spans_of(ends: dict[int, float]) -> list[Span]:
    """Return the rounds that count."""
    numbers = sorted(ends)[WARM_UP:]
    return [Span(number, ends[number - 1], ends[number]) for number in numbers]


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--devices", type=int, default=2, help="how many (default: 2)")
    options.add_argument("--rounds", type=int, default=20, help="at least 4 (default: 20)")
    options.add_argument("--data", type=Path, metavar="FILE", help="an NPZ file like MNIST's")
    chosen = options.parse_args()
    if chosen.rounds <= WARM_UP + 1:
        options.error(f"--rounds: at least {WARM_UP + 2}")
    paths = os.pathsep.join(map(str, (TRACE, ROOT, ROOT / "benchmarks")))
    with TemporaryDirectory(prefix="trellis-trace-") as folder:
        trace = Path(folder) / "trace"
        traces = {"PYTHONPATH": paths, "BENCH_TRACE": str(trace)}
        with Federation(devices=chosen.devices, source=chosen.data, environment=traces) as fleet:
            fleet.run_task(TASK, rounds=chosen.rounds)
            heard, ends = list(fleet.observer.heard), fleet.round_ends(TASK)
        events = traced(trace) + said(heard)
    spans = spans_of(ends)
    lengths = [span.ended - span.began for span in spans]
    middle = sorted(spans, key=lambda span: span.ended - span.began)[len(spans) // 2]
    rows = requests_a_round(spans, events)
    show(rows, ("who", "what", "a_round", "ms_median", "ms_a_round"), title="a round, by sender")
    show(timeline(middle, events), ("from_ms", "to_ms", "who", "what"), title=f"round {middle.number}")
    least, most = min(lengths), max(lengths)
    print(f"{len(spans)} rounds: median {statistics.median(lengths):.3f} s, {least:.3f} to {most:.3f} s")
    write(rows, chosen.json)


if __name__ == "__main__":
    run(main)
