"""Averaging in regions often, and at the centre seldom: the direction of HierFAVG.

Liu et al., "Client-edge-cloud hierarchical federated learning", 2020: with the same local work between two
rounds at the centre, devices whose data differ gain from averaging with their neighbours in between. MNIST,
the network of two hidden layers (`mlp`), 50 devices of one class each, in five regions that have all classes.
Between two central rounds every device trains 60 steps: in one regional round of 60 steps, or in ten of 6.

    python benchmarks/hierfavg.py --data ../shared/data/mnist.npz --plot hierfavg.svg --json hierfavg.json

Real processes on loopback: a broker, a server that tests the model on the 10,000 test samples after each
central round, five gateways with their SuperLinks, five processes of ten devices.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import workload
from curves import svg
from regions import Regions
from report import Rows, output_file, parser, run, show, write

REGIONS, CLASSES, STEPS, OFTEN, SEED = 5, 10, 60, 10, 42
COLUMNS = ("round", "accuracy_1x60", "accuracy_10x6", "ahead_points")


def work(learning_rate: float, batch: int) -> dict[str, Any]:
    """Return what both tasks have alike."""
    return {
        "model": {"name": "mlp"},
        "data": {"name": "mnist", "shape": [1, 28, 28], "classes": CLASSES},
        "train": {"batch_size": batch, "learning_rate": learning_rate, "seed": SEED},
    }


def accuracies(fleet: Regions, regional_rounds: int, rounds: int) -> list[float]:
    """Run a task; return the test accuracy after each of its central rounds."""
    task = f"rounds-{regional_rounds}"
    print(f"{rounds} central rounds of {regional_rounds} regional ones", flush=True)
    fleet.begin(
        task,
        rounds=rounds,
        tier="regional",
        train={"local_steps": STEPS // regional_rounds},
        aggregation={"regional_rounds": regional_rounds},
        evaluate={"on": ["server"], "every": 1},
    )
    fleet.until_ended(task, rounds * regional_rounds)
    lines = (fleet.ground.folder / "runs" / task / "metrics.jsonl").read_text().splitlines()
    found = [json.loads(line)["accuracy"] for line in lines]
    print(" ".join(f"{accuracy:.3f}" for accuracy in found), flush=True)
    return found


def measure(source: Path, rounds: int, train: dict[str, Any]) -> dict[int, list[float]]:
    """Return the accuracies of both, by the number of regional rounds in a central one."""
    with Regions(
        REGIONS, devices=REGIONS * CLASSES, data=f"mnist={source}", split="classes", work=train
    ) as fleet:
        return {number: accuracies(fleet, number, rounds) for number in (1, OFTEN)}


def rows_of(found: dict[int, list[float]]) -> Rows:
    """Return one row a central round: the accuracies in per cent, and the difference in points."""
    seldom, often = found.values()
    return [
        dict(zip(COLUMNS, (number, 100 * one, 100 * other, 100 * (other - one)), strict=True))
        for number, (one, other) in enumerate(zip(seldom, often, strict=True), 1)
    ]


def main() -> None:
    options = parser(__doc__)
    options.add_argument(
        "--data", type=Path, default=workload.DEFAULT_DATA, metavar="FILE", help="MNIST as NPZ"
    )
    options.add_argument("--rounds", type=int, default=20, help="central rounds (default: 20)")
    options.add_argument("--learning-rate", type=float, default=0.05, help="default: 0.05")
    options.add_argument("--batch", type=int, default=32, help="samples a step (default: 32)")
    options.add_argument("--plot", type=output_file, metavar="FILE", help="write the curves there, as SVG")
    chosen = options.parse_args()
    if not chosen.data.exists():
        options.error(f"there is no {chosen.data}: --data names MNIST as an NPZ file")
    found = measure(chosen.data.resolve(), chosen.rounds, work(chosen.learning_rate, chosen.batch))
    rows = rows_of(found)
    title = f"MNIST, {REGIONS * CLASSES} one-class devices in {REGIONS} regions: test accuracy"
    show(rows, COLUMNS, title=f"{title} in per cent")
    write(rows, chosen.json)
    if chosen.plot is not None:
        names = ("one regional round of 60 steps", "ten of 6 steps")
        curves = dict(zip(names, found.values(), strict=True))
        chosen.plot.write_text(svg(title, "central round", curves), encoding="utf-8")


if __name__ == "__main__":
    run(main)
