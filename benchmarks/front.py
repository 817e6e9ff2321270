"""What the front costs a device: the same requests straight to the SuperLink and through the front.

Each row is one kind of exchange; `ratio` is front over direct, from medians of one run in which the two take
turns. Run it on an otherwise idle machine:

    python benchmarks/front.py --repeats 200 --json front.json
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import report
from flwr.app import Message
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "contract"))

from flower_parts import ScriptedApp, scripted_app

from trellis.flower.front import FleetFront
from trellis.flower.link import FlowerLink
from trellis.flower.superlink import SuperLink
from trellis.http.server import HttpServer

SIZES = {"62 kB model": 15_500, "10 MB model": 2_500_000}


def timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


async def round_trip(app: ScriptedApp, link: FlowerLink, floats: int) -> float:
    """Return the device's seconds for one message: pull it, push the same arrays back."""
    sent = await app("push", node=link.node_id, type="train", floats=floats)

    def work() -> None:
        message = link.pull()
        if message is None:
            raise RuntimeError("the message is not there")
        link.push(Message(message.content, reply_to=message))

    seconds = await asyncio.to_thread(timed, work)
    await app.reply_to(sent["id"])
    return seconds


async def measure(repeats: int, folder: Path) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    async with (
        SuperLink(folder=folder / "superlink") as superlink,
        HttpServer(FleetFront(superlink.address), host="127.0.0.1", port=0, tls=None) as front,
        scripted_app(superlink, folder) as app,
    ):
        links = {
            "direct": FlowerLink(superlink.address, folder=folder / "direct", tls=None),
            "front": FlowerLink(f"127.0.0.1:{front.port}", folder=folder / "front", tls=None),
        }
        for link in links.values():
            await asyncio.to_thread(link.connect)
        idle: dict[str, list[float]] = {name: [] for name in links}
        for _ in range(repeats):
            for name, link in links.items():
                idle[name].append(await asyncio.to_thread(timed, link.pull))
        rows.append(row("empty pull", idle))
        for what, floats in SIZES.items():
            seconds: dict[str, list[float]] = {name: [] for name in links}
            for _ in range(max(3, repeats // 10)):
                for name, link in links.items():
                    seconds[name].append(await round_trip(app, link, floats))
            rows.append(row(what, seconds))
        for link in links.values():
            await asyncio.to_thread(link.close, deactivate=True)
    return rows


def row(what: str, seconds: dict[str, list[float]]) -> dict[str, object]:
    direct, front = (statistics.median(seconds[name]) * 1000 for name in ("direct", "front"))
    return {
        "exchange": what,
        "direct_ms_median": round(direct, 2),
        "front_ms_median": round(front, 2),
        "ratio": round(front / direct, 2),
        "repeats": len(seconds["front"]),
    }


def main() -> None:
    parser = report.parser(__doc__)
    parser.add_argument("--repeats", type=int, default=200)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="trellis-bench-") as folder:
        rows = asyncio.run(measure(options.repeats, Path(folder)))
    table = Table("exchange", "direct ms", "front ms", "ratio", "repeats", title="cost of the front")
    for item in rows:
        table.add_row(*(str(value) for value in item.values()))
    Console().print(table)
    report.write(rows, options.json)


if __name__ == "__main__":
    main()
