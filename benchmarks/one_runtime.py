"""Times one backend on one model, in a process that does nothing else; `runtimes` starts it and reads it.

    python benchmarks/one_runtime.py onnx lenet5 '[1, 28, 28]' 10 100 lenet5.onnx

It prints one JSON object: how long it took to import the runtime and open the model, and every step.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import numpy as np
from packaging.requirements import Requirement

from models.backends import Backend, TrainPlan, open_backend
from models.datasets import Dataset

BATCH, LEARNING_RATE, WARM_UP = 32, 0.01, 5
PACKAGES = {"torch": "torch", "onnx": "onnxruntime", "tflite": "ai_edge_litert.interpreter"}


def step_seconds(backend: Backend, arrays: dict[str, Any], data: Dataset, steps: int) -> list[float]:
    """Return how long each step took, but for the first ones."""
    ends = [time.perf_counter()]
    plan = TrainPlan(epochs=None, steps=WARM_UP + steps, batch_size=BATCH, learning_rate=LEARNING_RATE)
    rng = np.random.default_rng(0)
    backend.train(arrays, data, plan, rng, on_step=lambda _: ends.append(time.perf_counter()))
    return np.diff(ends)[WARM_UP:].tolist()


def installed_bytes(extra: str) -> int:
    """Return what an agent with that extra takes on the disk: every distribution that it needs."""
    wanted, found = [("trellis-fl", extra)], {}
    while wanted:
        name, of = wanted.pop()
        try:
            one = distribution(name)
        except PackageNotFoundError:
            continue  # a requirement of another platform
        if (name, of) in found:
            continue
        seen = any(other == name for other, _ in found)
        files = [] if seen else (one.files or [])
        found[name, of] = sum(
            path.stat().st_size for file in files if (path := Path(str(one.locate_file(file)))).is_file()
        )
        for line in one.requires or []:
            needed = Requirement(line)
            if needed.marker is None or needed.marker.evaluate({"extra": of}):
                wanted += [(needed.name.lower(), part) for part in ("", *needed.extras)]
    return sum(found.values())


def main() -> None:
    name, model, shape, classes, steps, *artefact = sys.argv[1:]
    sizes = tuple(json.loads(shape))
    began = time.perf_counter()
    importlib.import_module(PACKAGES[name])
    backend = open_backend(
        name,
        model,
        shape=sizes,
        classes=int(classes),
        seed=0,
        artefact=Path(artefact[0]) if artefact else None,
        threads=1,
    )
    import_s = time.perf_counter() - began
    rng = np.random.default_rng(1)
    x = rng.normal(size=(8 * BATCH, *sizes)).astype(np.float32)
    data = Dataset("noise", x, rng.integers(0, int(classes), len(x)), int(classes))
    with np.load("start.npz") as stored:
        arrays = dict(stored)
    seconds = step_seconds(backend, arrays, data, int(steps))
    print(json.dumps({"import_s": import_s, "installed": installed_bytes(name), "steps_s": seconds}))


if __name__ == "__main__":
    main()
