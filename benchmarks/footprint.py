"""What a device costs that has nothing to do, that waits in a task, and that trains.

One device of a real federation on loopback, its connections to broker and front led through a proxy that
counts bytes, HTTP requests and MQTT packets. Its data are an NPZ file, its model the convolutional network of
21,840 parameters.

    python benchmarks/footprint.py --window 120 --waiting 400 --json footprint.json

memory      of the device's one process (PSS shares pages that others use as well, RSS does not): at rest
            before its first task, at most while it trains (sampled every 50 ms), and at rest after the task
idle        no task: what it sends and gets, counted over --window seconds and extrapolated to an hour
waiting     checked in to a task that waits for a second device: counted over --waiting seconds and
            extrapolated; the Flower heartbeat comes every three minutes and the pull about every minute, so
            a window of less than 200 s may see none
wire        bytes of a round each way at the front, headers and all, over the model's 4 bytes a parameter:
            the difference of two tasks with 1 and 1 + --rounds rounds, so that connecting counts in neither
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import psutil
import workload
from federation import REGION, Federation, execution_topic
from ground import Ended
from report import Rows, parser, run, show, write
from wire import CountingProxy

MEGABYTE = 1e6
SAMPLE_S = 0.05
SETTLE_S = 3.0
COLUMNS = ("figure", "value", "unit", "target", "note")


@dataclass
class Peak:
    """The most memory that a process had from `__enter__` to `__exit__`."""

    process: psutil.Process
    rss_mb: float = 0.0
    pss_mb: float = 0.0
    _ended: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._sample, name="memory", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join()

    def _sample(self) -> None:
        while True:
            rss_mb, pss_mb = memory(self.process)
            self.rss_mb, self.pss_mb = max(self.rss_mb, rss_mb), max(self.pss_mb, pss_mb)
            if self._ended.wait(SAMPLE_S):
                return


def memory(process: psutil.Process) -> tuple[float, float]:
    """Return RSS and PSS in MB of a process and all that it has started."""
    parts = [one.memory_full_info() for one in (process, *process.children(recursive=True))]
    return sum(part.rss for part in parts) / MEGABYTE, sum(part.pss for part in parts) / MEGABYTE


def row(
    figure: str, value: float, unit: str, *, target: float | None = None, note: str = ""
) -> dict[str, Any]:
    return {"figure": figure, "value": round(value, 3), "unit": unit, "target": target, "note": note}


def wires(fleet: Federation) -> tuple[CountingProxy, CountingProxy]:
    if fleet.mqtt_wire is None or fleet.front_wire is None:
        raise Ended("the federation does not count")
    return fleet.mqtt_wire, fleet.front_wire


def counted(fleet: Federation, seconds: float, what: str) -> tuple[Counter[str], Counter[str]]:
    """Return what came and went at broker and front in so many seconds."""
    print(f"counting for {seconds:g} s: {what}")
    before = [wire.snapshot() for wire in wires(fleet)]
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        fleet.check_alive()
        time.sleep(min(0.5, max(0.0, until - time.monotonic())))
    mqtt, front = (wire.snapshot() - old for wire, old in zip(wires(fleet), before, strict=True))
    return mqtt, front


def of_an_hour(state: str, mqtt: Counter[str], front: Counter[str], seconds: float) -> Rows:
    """Return the rows of a window, extrapolated."""
    hours = seconds / 3600
    note = f"counted over {seconds:g} s, extrapolated"
    packets = {name: count for name, count in mqtt.items() if not name.startswith("bytes")}
    pings = sum(count for name, count in packets.items() if "PING" in name)
    requests = {path: count for path, count in front.items() if path.startswith("/")}
    kinds = ", ".join(f"{count} {name}" for name, count in sorted(packets.items()))
    paths = ", ".join(f"{count} {path.rpartition('/')[2]}" for path, count in sorted(requests.items()))
    return [
        row(f"{state}: MQTT keep-alive packets", pings / hours, "an hour", note=f"{note}: {kinds or 'none'}"),
        row(f"{state}: other MQTT packets", (sum(packets.values()) - pings) / hours, "an hour", note=note),
        row(
            f"{state}: HTTP requests",
            sum(requests.values()) / hours,
            "an hour",
            note=f"{note}: {paths or 'none'}",
        ),
    ]


def idle_rows(fleet: Federation, seconds: float) -> Rows:
    mqtt, front = counted(fleet, seconds, "a device without a task")
    rows = of_an_hour("idle", mqtt, front, seconds)
    rows[1]["target"] = rows[2]["target"] = 0.0
    return rows


def waiting_rows(fleet: Federation, seconds: float) -> Rows:
    participants = {"minimum": 2, "deadline_s": seconds + 300.0}
    fleet.post("waiting", rounds=1, participants=participants)
    checked_in(fleet, "waiting")
    mqtt, front = counted(fleet, seconds, "a device that waits in a task")
    fleet.cancel("waiting")
    rows = of_an_hour("waiting", mqtt, front, seconds)
    limits = {"pull-messages": 60.0, "send-node-heartbeat": 30.0}
    for name, most in limits.items():
        count = sum(many for path, many in front.items() if path.endswith(name))
        note = f"{count} in {seconds:g} s, extrapolated"
        rows.append(row(f"waiting: {name}", count * 3600 / seconds, "an hour", target=most, note=note))
    return rows


def checked_in(fleet: Federation, task: str) -> None:
    """Return when the device has answered who it is and has come to rest."""

    def holds() -> bool:
        fleet.check_alive()
        flower = fleet.observer.field(execution_topic(0, task), "flower")
        return isinstance(flower, dict) and bool(flower.get("message_id"))

    fleet.ground.until(holds, "the device's check-in", within_s=60)
    time.sleep(SETTLE_S)


def task_rows(fleet: Federation, device: psutil.Process, rounds: int) -> Rows:
    """Run two tasks, and return the rows of memory and wire."""
    rss_mb, pss_mb = memory(device)
    note = f"{1 + len(device.children(recursive=True))} process, PSS {pss_mb:.0f} MB, no task yet"
    rows = [row("memory at rest", rss_mb, "MB RSS", target=320.0, note=note)]
    deltas: list[Counter[str]] = []
    with Peak(device) as peak:
        for count in (1, 1 + rounds):
            before = [wire.snapshot() for wire in wires(fleet)]
            fleet.run_task(f"rounds-{count}", rounds=count)
            fleet.until_field(execution_topic(0, f"rounds-{count}"), "state", "SUCCEEDED")
            mqtt, front = (wire.snapshot() - old for wire, old in zip(wires(fleet), before, strict=True))
            deltas.append(Counter({f"mqtt {name}": many for name, many in mqtt.items()}) + front)
    note = f"most of {1 + len(device.children(recursive=True))} process, PSS {peak.pss_mb:.0f} MB, with torch"
    rows.append(row("memory in training", peak.rss_mb, "MB RSS", target=320.0, note=note))
    time.sleep(SETTLE_S)
    rss_mb, pss_mb = memory(device)
    rows.append(row("memory after a task", rss_mb, "MB RSS", target=320.0, note=f"PSS {pss_mb:.0f} MB"))
    return rows + wire_rows(deltas[0], deltas[1], rounds)


def wire_rows(one: Counter[str], more: Counter[str], rounds: int) -> Rows:
    model_bytes = 4 * workload.PARAMETERS

    def a_round(belongs: Callable[[str], bool]) -> float:
        return sum(more[name] - one[name] for name in more | one if belongs(name)) / rounds

    note = f"mean of {rounds} rounds; the model has {model_bytes} bytes"
    rows = []
    for way in ("up", "down"):
        size = a_round(lambda name, way=way: name == f"bytes {way}")  # type: ignore[misc]
        share = size / model_bytes
        rows.append(row(f"wire {way}", share, "models a round", target=1.1, note=f"{size:.0f} bytes, {note}"))
    requests = a_round(lambda name: name.startswith("/"))
    rows.append(row("HTTP requests", requests, "a round", note=f"mean of {rounds} rounds, one device"))
    packets = a_round(lambda name: name.startswith("mqtt ") and "bytes" not in name)
    size = a_round(lambda name: name.startswith("mqtt bytes"))
    rows.append(row("MQTT packets", packets, "a round", note=f"{size:.0f} bytes both ways, one device"))
    return rows


def measure(window_s: float, waiting_s: float, rounds: int, source: Path | None) -> Rows:
    with Federation(devices=1, source=source, counted=True) as fleet:
        device = psutil.Process(fleet.devices[0].pid)
        time.sleep(SETTLE_S)
        rows = idle_rows(fleet, window_s)
        rows += task_rows(fleet, device, rounds)
        rows += waiting_rows(fleet, waiting_s)
        print(f"region {REGION}: done")
        return rows


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--window", type=float, default=60.0, metavar="S", help="idle (default: 60)")
    options.add_argument("--waiting", type=float, default=120.0, metavar="S", help="waiting (default: 120)")
    options.add_argument("--rounds", type=int, default=10, help="rounds for the wire (default: 10)")
    options.add_argument("--data", type=Path, metavar="FILE", help="an NPZ file like MNIST's")
    chosen = options.parse_args()
    if min(chosen.window, chosen.waiting, chosen.rounds) <= 0:
        options.error("windows and rounds must be above 0")
    rows = measure(chosen.window, chosen.waiting, chosen.rounds, chosen.data)
    show(rows, COLUMNS, title="what a device costs")
    write(rows, chosen.json)


if __name__ == "__main__":
    run(main)
