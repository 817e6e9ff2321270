"""What training costs with each backend: time, memory, start and disk, model by model.

    python benchmarks/runtimes.py --models lenet5,mlp --json runtimes.json

Every backend works in an environment of its own, `.runtimes/<backend>`, where `make runtimes` has built it,
else in this one. Batches of 32 on one thread, the same numbers everywhere.

step       the median of --steps steps, in processes that train and do nothing else, --repeats of each,
           by turns, so that a busy minute meets all backends alike
agent      the most memory (RSS) that a device's one process has in a federation on loopback while it trains
           two rounds: MQTT, Flower and the runtime. Sampled every 50 ms; a fresh process for each row
import     importing the runtime and opening the model, once numpy is there
installed  every package that `trellis-fl[<backend>]` needs, on the disk
artefact   the file that a device without PyTorch trains from
"""

from __future__ import annotations

import json
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from federation import Federation, execution_topic
from footprint import MEGABYTE, Peak
from ground import ROOT, Ended, Ground, Process
from report import Rows, parser, run, show, write

from models.backends import open_backend

SHAPES: dict[str, tuple[tuple[int, ...], int]] = {
    "softmax": ((1, 28, 28), 10),
    "mlp": ((1, 28, 28), 10),
    "lenet5": ((1, 28, 28), 10),
    "convnet": ((1, 28, 28), 10),
    "resnet8": ((3, 32, 32), 10),
    "mobile-cnn": ((3, 32, 32), 10),
    "sensor-cnn": ((6, 128), 6),
    "gru": ((28, 28), 10),
}
BACKENDS = ("torch", "onnx", "tflite")
SAMPLES, ROUNDS = 256, 2
EXPORT_S, STEPS_S = 600.0, 600.0
COLUMNS = (
    "backend",
    "model",
    "step_ms_median",
    "step_over_torch",
    "agent_rss_mb",
    "import_s",
    "installed_mb",
    "artefact_bytes",
)


@dataclass(frozen=True)
class Work:
    """One model as it is trained here."""

    model: str
    shape: tuple[int, ...]
    classes: int


class OneDevice(Federation):
    """A federation of one device, with a backend, a model and a Python of its own."""

    def __init__(self, work: Work, backend: str, file: Path) -> None:
        self._work, self._backend, self._file = work, backend, file
        super().__init__(devices=1)

    def descriptor(self) -> dict[str, Any]:
        """Return the task of the model."""
        data = {"name": "noise", "shape": list(self._work.shape), "classes": self._work.classes}
        train = {"local_epochs": 1, "batch_size": 32, "learning_rate": 0.01, "seed": 1}
        few = {"minimum": 1, "quorum": 1.0, "deadline_s": 600.0}
        return {"model": {"name": self._work.model}, "data": data, "train": train, "participants": few}

    def _device(self, index: int, _file: Path) -> Process:
        own = ("--name", f"d{index}", "--region", "eu-1", "--server", self.front)
        common = ("--keys", "keys", "--broker", self.broker_url, "--insecure")
        options = (*own, *common, "--data", f"noise={self._file}", "--backend", self._backend)
        command = [python_of(self._backend), "-m", "trellis", "device", *options]
        return self.ground._process(f"device-{index}", command, None)


def python_of(backend: str) -> str:
    """Return the Python of the backend's own environment, this one where there is none."""
    own = ROOT / ".runtimes" / backend / "bin" / "python"
    return str(own) if own.exists() else sys.executable


def exported(ground: Ground, work: Work, runtime: str) -> Path:
    """Return the training artefact of a model, made by `trellis export`."""
    name = f"{work.model}.{runtime}"
    sizes = ",".join(map(str, work.shape))
    options = ("--format", runtime, "--for", "training", "--shape", sizes, "--classes", str(work.classes))
    process = ground.trellis(f"export-{name}", "export", work.model, *options, "-o", name).start()
    if process.wait(EXPORT_S) != 0:
        raise Ended(f"{name} was not exported\n{process.last_words()}")
    return ground.folder / name


def timed(ground: Ground, work: Work, backend: str, artefact: Path | None, *, turn: int, steps: int) -> Any:
    """Return what `one_runtime` found in a process of its own."""
    script = str(ROOT / "benchmarks" / "one_runtime.py")
    arguments = [backend, work.model, json.dumps(list(work.shape)), str(work.classes), str(steps)]
    command = [python_of(backend), script, *arguments, *([artefact.name] if artefact else [])]
    process = ground._process(f"{backend}-{work.model}-{turn}", command, None).start()
    if process.wait(STEPS_S) != 0:
        raise Ended(f"{backend} did not train {work.model}\n{process.last_words()}")
    return json.loads(process.log.read_text().splitlines()[-1])


def agent_rss_mb(work: Work, backend: str, folder: Path) -> float:
    """Return the most memory of a device that trains."""
    rng = np.random.default_rng(1)
    y = np.arange(SAMPLES) % work.classes
    file = folder / f"{work.model}.npz"
    np.savez(file, x_train=rng.normal(size=(SAMPLES, *work.shape)).astype(np.float32), y_train=y)
    with OneDevice(work, backend, file) as fleet:
        device = psutil.Process(fleet.devices[0].pid)
        with Peak(device) as peak:
            fleet.run_task("weighed", rounds=ROUNDS)
        if (used := fleet.observer.field(execution_topic(0, "weighed"), "backend")) != backend:
            raise Ended(f"the device trained with {used}, not with {backend}")
        return peak.rss_mb


def measure(work: Work, backends: list[str], steps: int, repeats: int) -> Rows:
    """Return the rows of one model."""
    with Ground() as ground:
        start = open_backend("torch", work.model, shape=work.shape, classes=work.classes, seed=1).initial()
        np.savez(ground.folder / "start.npz", **start)  # type: ignore[arg-type]
        artefacts = {name: exported(ground, work, name) if name != "torch" else None for name in backends}
        found: dict[str, list[Any]] = {name: [] for name in backends}
        for turn in range(repeats):
            for name in backends:
                found[name].append(timed(ground, work, name, artefacts[name], turn=turn, steps=steps))
        rows = []
        for name in backends:
            artefact = artefacts[name]
            rows.append(
                {
                    "backend": name,
                    "model": work.model,
                    "step_ms_median": 1e3
                    * statistics.median(s for one in found[name] for s in one["steps_s"]),
                    "agent_rss_mb": agent_rss_mb(work, name, ground.folder),
                    "import_s": statistics.median(one["import_s"] for one in found[name]),
                    "installed_mb": found[name][0]["installed"] / MEGABYTE,
                    "artefact_bytes": artefact.stat().st_size if artefact else None,
                }
            )
            print(f"{work.model} with {name}: {rows[-1]['step_ms_median']:.2f} ms a step")
        return rows


def compared(rows: Rows) -> Rows:
    """Return the rows with each step's time over torch's of the same model."""
    torch = {row["model"]: row["step_ms_median"] for row in rows if row["backend"] == "torch"}
    return [
        row | {"step_over_torch": row["step_ms_median"] / torch[row["model"]]}
        if row["model"] in torch
        else row
        for row in rows
    ]


def chosen_of(text: str, known: list[str], what: str) -> list[str]:
    """Return the names in a comma list.

    Raises:
        Ended: One of them is none.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise Ended(f"there is no {what} {', '.join(unknown) or 'named'}; there is: {', '.join(known)}")
    return names


def main() -> None:
    options = parser(__doc__)
    options.add_argument(
        "--models", default=",".join(SHAPES), metavar="A,B", help="(default: all of the zoo)"
    )
    options.add_argument("--backends", default=",".join(BACKENDS), metavar="A,B", help="(default: all)")
    options.add_argument("--steps", type=int, default=60, help="steps of each process (default: 60)")
    options.add_argument("--repeats", type=int, default=3, help="processes of each row (default: 3)")
    chosen = options.parse_args()
    if min(chosen.steps, chosen.repeats) <= 0:
        options.error("steps and repeats must be above 0")
    models = chosen_of(chosen.models, list(SHAPES), "model")
    backends = chosen_of(chosen.backends, list(BACKENDS), "backend")
    shared = [name for name in backends if python_of(name) == sys.executable]
    if shared:
        print(
            f"{', '.join(shared)}: in this environment, for want of .runtimes ('make runtimes' builds them)"
        )
    rows: Rows = []
    for model in models:
        rows += measure(Work(model, *SHAPES[model]), backends, chosen.steps, chosen.repeats)
    show(compared(rows), COLUMNS, title="training by backend and model, one thread, batches of 32")
    write(rows, chosen.json)


if __name__ == "__main__":
    run(main)
