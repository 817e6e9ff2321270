"""What a region's gateway spares the centre: the same devices flat, and averaged in their regions first.

Real processes on loopback: a broker, a server, a gateway for each region, and for each region one process
that is all its devices (`trellis device --replicas`). Each number of devices is a federation of its own that
runs four tasks: flat and regional, timed and counted. Data are the digits, the model is `mlp` (55,210
parameters, 221 kB), five steps of training a round, no evaluation.

    python benchmarks/hierarchy.py --devices 10,50,100 --regions 5 --rounds 10 --json hierarchy.json

round_s_median            from one central round's end to the next, all devices on this machine's processors
centre_bytes_per_round    both ways: HTTP at the server's Flower front, and the server's MQTT
centre_requests_per_round HTTP requests at that front
centre_cpu_s_per_round    user and system time of the server, its SuperLink and its ServerApp
centre_rss_mb             their memory together, at the end of the rounds
gateway_rss_mb            the same of a gateway, its SuperLink and its app: the largest of all gateways

Bytes and requests come from a task of --counted rounds through proxies that count; all else from the other
one, which knows no proxy but the server's to the broker. The first round of each task counts in nothing.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from typing import Any

import psutil
from ground import Process
from regions import DEADLINE_S, Regions, Tier
from report import Rows, counts, parser, run, show, write

MEGABYTE = 1e6
GATHER_S = 180.0
TIERS: tuple[Tier, Tier] = ("central", "regional")
WORK: dict[str, Any] = {
    "model": {"name": "mlp"},
    "data": {"name": "digits", "shape": [1, 8, 8], "classes": 10},
    "train": {"local_steps": 5, "batch_size": 16, "learning_rate": 0.05, "seed": 42},
}
COLUMNS = (
    "tier",
    "devices",
    "regions",
    "round_s_median",
    "centre_bytes_per_round",
    "centre_requests_per_round",
    "centre_cpu_s_per_round",
    "centre_rss_mb",
    "gateway_rss_mb",
)


def family(process: Process) -> list[psutil.Process]:
    """Return a process and all that it has started."""
    first = psutil.Process(process.pid)
    return [first, *first.children(recursive=True)]


def cpu_s(members: Sequence[psutil.Process]) -> float:
    """Return the processor time of processes and of the children that they have outlived."""
    return sum(sum(one.cpu_times()[:4]) for one in members if one.is_running())


def rss_mb(process: Process) -> float:
    """Return the memory of a process and all that it has started, shared pages counted in each."""
    return sum(one.memory_info().rss for one in family(process)) / MEGABYTE


def timed(fleet: Regions, tier: Tier, rounds: int) -> dict[str, Any]:
    """Run `rounds` rounds between two that are not looked at."""
    task = f"timed-{tier}"
    fleet.begin(task, rounds=rounds + 2, tier=tier)
    fleet.until_round(task, 2, within_s=GATHER_S + DEADLINE_S)
    before = cpu_s(family(fleet.server))
    fleet.until_round(task, rounds + 2, within_s=rounds * DEADLINE_S)
    spent = cpu_s(family(fleet.server)) - before
    memory, gateways = rss_mb(fleet.server), [rss_mb(gateway) for gateway in fleet.gateways]
    fleet.until_ended(task, rounds + 2)
    ends = fleet.round_ends(task)
    seconds = [ends[number] - ends[number - 1] for number in range(2, rounds + 2)]
    return {
        "round_s_median": round(statistics.median(seconds), 3),
        "centre_cpu_s_per_round": round(spent / rounds, 4),
        "centre_rss_mb": round(memory, 1),
        "gateway_rss_mb": round(max(gateways), 1),
    }


def counted(fleet: Regions, tier: Tier, rounds: int) -> dict[str, Any]:
    """Run `rounds` rounds through the proxies between two that are not looked at."""
    task = f"counted-{tier}"
    fleet.begin(task, rounds=rounds + 2, tier=tier, counted=True)
    fleet.until_round(task, 2, within_s=GATHER_S + DEADLINE_S)
    before = came(fleet)
    fleet.until_round(task, rounds + 2, within_s=rounds * DEADLINE_S)
    passed = came(fleet) - before
    fleet.until_ended(task, rounds + 2)
    requests = sum(many for path, many in passed.items() if path.startswith("/"))
    return {
        "centre_bytes_per_round": round(passed["bytes"] / rounds),
        "centre_requests_per_round": round(requests / rounds, 1),
    }


def came(fleet: Regions) -> Counter[str]:
    """Return what has come and gone at the centre so far: bytes both ways, and requests by path."""
    mqtt, front = (wire.snapshot() for wire in fleet.wires)
    size = sum(counts[way] for counts in (mqtt, front) for way in ("bytes up", "bytes down"))
    return Counter({path: many for path, many in front.items() if path.startswith("/")}) + Counter(bytes=size)


def measure(devices: int, regions: int, rounds: int, counted_rounds: int) -> Rows:
    """Return one row a tier."""
    rows = []
    with Regions(regions, devices=devices, data="digits", work=WORK) as fleet:
        for tier in TIERS:
            print(f"{devices} devices in {regions} regions, {tier}", flush=True)
            found = timed(fleet, tier, rounds) | counted(fleet, tier, counted_rounds)
            row = {"tier": tier, "devices": devices, "regions": regions} | found
            rows.append({column: row[column] for column in COLUMNS})
            print(rows[-1], flush=True)
    return rows


def growth(rows: Rows) -> Rows:
    """Return how each figure of a tier grew from the fewest devices to the most."""
    found: Rows = []
    for tier in TIERS:
        few, *_, many = sorted((row for row in rows if row["tier"] == tier), key=lambda row: row["devices"])
        ratios = {name: many[name] / few[name] for name in COLUMNS[3:] if few[name]}
        found.append({"tier": tier, "devices": f"{few['devices']} to {many['devices']}"} | ratios)
    return found


def main() -> None:
    options = parser(__doc__)
    options.add_argument(
        "--devices",
        type=counts,
        default=[10, 50, 100],
        metavar="N,…",
        help="how many, of all regions (default: 10,50,100)",
    )
    options.add_argument("--regions", type=int, default=5, help="how many (default: 5)")
    options.add_argument("--rounds", type=int, default=10, help="timed rounds of each task (default: 10)")
    options.add_argument("--counted", type=int, default=5, help="counted rounds of each task (default: 5)")
    chosen = options.parse_args()
    numbers = chosen.devices
    if min(chosen.regions, chosen.rounds, chosen.counted) < 1:
        options.error("--regions, --rounds and --counted: at least 1")
    if any(number % chosen.regions for number in numbers):
        options.error(f"all regions have equally many devices: name multiples of {chosen.regions}")
    rows: Rows = []
    for number in numbers:
        rows += measure(number, chosen.regions, chosen.rounds, chosen.counted)
        write(rows, chosen.json)
    show(rows, COLUMNS, title="flat and regional")
    if len(numbers) > 1:
        show(growth(rows), COLUMNS, title="times as much")


if __name__ == "__main__":
    run(main)
