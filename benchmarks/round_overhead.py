"""What a round costs: stock Flower, Trellis, and Flower's deprecated single stream as the lower bound.

All three train the same convolutional network of 21,840 parameters on the same samples (256 a device, one
epoch, one thread), on this machine, over plain connections on loopback, one after the other. Evaluation is
off for all alike. A round is timed at the server, from the end of one aggregation to the end of the next, so
the first round, which warms up, is left out for all alike. Run it on an otherwise idle machine:

    python benchmarks/round_overhead.py --devices 2,8 --rounds 20 --json round_overhead.json

flower-stock    flower-superlink and a flower-supernode a device, as Flower 1.41 starts them
trellis         broker, server, gateway, and a process a device; a round includes checkpoint and reports
flower-legacy   start_server and a start_client process a device: deprecated, no authentication, no restart
"""

from __future__ import annotations

import itertools
import os
import statistics
from collections.abc import Callable
from pathlib import Path

import workload
from federation import Federation
from ground import ROOT, Ended, Ground, listens
from report import Rows, counts, parser, run, show, write

from trellis.loopback import free_ports

START_S = 180.0
ROUND_S = 120.0
COLUMNS = (
    "federation",
    "devices",
    "rounds",
    "round_s_median",
    "round_s_min",
    "round_s_max",
    "stock_over_this",
    "this_over_legacy",
)


def stock(devices: int, rounds: int, source: Path | None) -> list[float]:
    """Return the times at which the rounds of stock Flower ended."""
    with Ground() as ground:
        port, *node_ports = free_ports(1 + devices)
        times = ground.folder / "times"
        home = {"FLWR_HOME": str(ground.folder / "flower")}
        (ground.folder / "flower").mkdir()
        config = f'[superlink.bench]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
        (ground.folder / "flower" / "config.toml").write_text(config)
        link = ("flower-superlink", "--insecure", "--host", "127.0.0.1", "--port", str(port))
        install = "--disable-runtime-dependency-installation"
        ground.program("superlink", *link, install, environment=home).start()
        ground.until(lambda: listens(port), "the SuperLink", within_s=START_S)
        for index, file in enumerate(workload.write_data(ground.folder, devices, source)):
            node = ("flower-supernode", "--insecure", "--superlink", f"127.0.0.1:{port}")
            more = ("--port", str(node_ports[index]), "--node-config", f'data="{file}"')
            own = {"FLWR_HOME": str(ground.folder / f"flower-{index}")}
            ground.program(f"supernode-{index}", *node, *more, environment=own).start()
        settings = f'rounds={rounds} devices={devices} times="{times}"'
        app = str(ROOT / "benchmarks" / "stock_app")
        command = ("flwr", "run", app, "bench", "--format", "json", "-c", settings)
        submitting = ground.program("run", *command, environment=home).start()
        if submitting.wait(START_S) != 0:
            raise Ended(f"flwr run failed\n{submitting.last_words()}")
        return _times(ground, times, rounds)


def legacy(devices: int, rounds: int, source: Path | None) -> list[float]:
    """Return the times at which the rounds of `start_server` ended."""
    with Ground() as ground:
        (port,) = free_ports(1)
        times = ground.folder / "times"
        script = str(ROOT / "benchmarks" / "legacy.py")
        ground.python("server", script, "server", str(port), str(devices), str(rounds), str(times)).start()
        ground.until(lambda: listens(port), "the legacy server", within_s=START_S)
        for index, file in enumerate(workload.write_data(ground.folder, devices, source)):
            ground.python(f"client-{index}", script, "client", str(port), str(file)).start()
        return _times(ground, times, rounds)


def trellis(devices: int, rounds: int, source: Path | None) -> list[float]:
    """Return the times at which the rounds of Trellis ended: the stamps of their announcements."""
    with Federation(devices=devices, source=source) as fleet:
        fleet.run_task("bench", rounds=rounds)
        ends = fleet.round_ends("bench")
        return [ends[number] for number in sorted(ends)]


FEDERATIONS: dict[str, Callable[[int, int, Path | None], list[float]]] = {
    "flower-stock": stock,
    "trellis": trellis,
    "flower-legacy": legacy,
}


def _times(ground: Ground, file: Path, rounds: int) -> list[float]:
    def lines() -> list[str]:
        return file.read_text().splitlines() if file.exists() else []

    ground.until(lambda: len(lines()) >= rounds, f"{rounds} rounds", within_s=START_S + rounds * ROUND_S)
    return [float(line) for line in lines()]


def row(federation: str, devices: int, ends: list[float]) -> dict[str, object]:
    seconds = [later - earlier for earlier, later in itertools.pairwise(ends)]
    return {
        "federation": federation,
        "devices": devices,
        "rounds": len(seconds),
        "round_s_median": round(statistics.median(seconds), 4),
        "round_s_min": round(min(seconds), 4),
        "round_s_max": round(max(seconds), 4),
    }


def with_ratios(rows: Rows) -> Rows:
    medians = {(one["federation"], one["devices"]): one["round_s_median"] for one in rows}
    for one in rows:
        stock_s = medians.get(("flower-stock", one["devices"]))
        legacy_s = medians.get(("flower-legacy", one["devices"]))
        if stock_s is not None:
            one["stock_over_this"] = round(stock_s / one["round_s_median"], 2)
        if legacy_s is not None:
            one["this_over_legacy"] = round(one["round_s_median"] / legacy_s, 2)
    return rows


def main() -> None:
    options = parser(__doc__)
    options.add_argument(
        "--devices",
        type=counts,
        default=[2],
        metavar="N,…",
        help="how many, or several such as 2,8 (default: 2)",
    )
    options.add_argument("--rounds", type=int, default=10, help="rounds of each, at least 2 (default: 10)")
    options.add_argument("--only", default=",".join(FEDERATIONS), help="some of: " + ", ".join(FEDERATIONS))
    options.add_argument("--data", type=Path, metavar="FILE", help="an NPZ file like MNIST's")
    chosen = options.parse_args()
    names = chosen.only.split(",")
    if unknown := sorted(set(names) - set(FEDERATIONS)):
        options.error(f"--only: there is no {', '.join(unknown)}; there is: {', '.join(FEDERATIONS)}")
    if chosen.rounds < 2:
        options.error("--rounds: at least 2, the first is left out")
    print(f"load averages at the start: {' '.join(f'{value:.1f}' for value in os.getloadavg())}")
    rows: Rows = []
    for devices in chosen.devices:
        for name in names:
            rows.append(row(name, devices, FEDERATIONS[name](devices, chosen.rounds, chosen.data)))
            print(f"{name}, {devices} devices: {rows[-1]['round_s_median']} s a round")
    show(with_ratios(rows), COLUMNS, title="seconds a round")
    write(rows, chosen.json)


if __name__ == "__main__":
    run(main)
