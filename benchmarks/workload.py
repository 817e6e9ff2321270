"""The work that all federations do alike: the model, the data of each device, and one round of its training.

The convolutional network of 21,840 parameters in eight tensors, 256 pictures of 28×28 a device, one epoch in
batches of 32 on one thread, by the same backend. Without a file of MNIST the pictures are drawn at random.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from ground import ROOT
from numpy.typing import NDArray

from models.backends import Backend, DefiningBackend, TrainPlan, open_backend
from models.datasets import Dataset, load, scale
from trellis.seeds import generator

MODEL = "convnet"
SHAPE, CLASSES, SAMPLES, BATCH = (1, 28, 28), 10, 256, 32
PARAMETERS = 21_840
LEARNING_RATE, SEED = 0.05, 42
DATA_NAME = "pictures"
DEFAULT_DATA = ROOT.parent / "shared" / "data" / "mnist.npz"


def write_data(folder: Path, devices: int, source: Path | None) -> list[Path]:
    """Write one NPZ file a device, each with samples of its own, and return the files."""
    source = DEFAULT_DATA if source is None and DEFAULT_DATA.exists() else source
    if source is None:
        x, y = _drawn(devices * SAMPLES)
    else:
        with np.load(source, allow_pickle=False) as stored:
            x, y = (stored[key][: devices * SAMPLES] for key in ("x_train", "y_train"))
    if len(y) < devices * SAMPLES:
        raise SystemExit(f"{source} has {len(y)} samples, {devices} devices need {devices * SAMPLES}")
    files = []
    for index in range(devices):
        part = slice(index * SAMPLES, (index + 1) * SAMPLES)
        labels = y[part].astype(np.int64)
        labels[-1] = CLASSES - 1  # a part knows how many classes there are by its greatest label
        files.append(folder / f"device-{index}.npz")
        np.savez(files[-1], x_train=x[part], y_train=labels)
    return files


def open_model() -> DefiningBackend:
    """Return the model, with its initial parameters."""
    return open_backend("torch", MODEL, shape=SHAPE, classes=CLASSES, seed=SEED, threads=1)


def read_data(file: Path) -> Dataset:
    """Return a device's samples, scaled."""
    return scale(load(f"{DATA_NAME}={file}", split="train"), None)


def train(
    backend: Backend, arrays: dict[str, NDArray[Any]], data: Dataset, round_number: int
) -> tuple[dict[str, NDArray[Any]], float]:
    """Return what one round of training makes of `arrays`, and its loss."""
    plan = TrainPlan(epochs=1, steps=None, batch_size=BATCH, learning_rate=LEARNING_RATE)
    result = backend.train(arrays, data, plan, generator(SEED, "train", round_number))
    return dict(result.arrays), result.loss


def _drawn(count: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    rng = generator(SEED, "pictures")
    return rng.integers(0, 256, (count, *SHAPE[1:]), dtype=np.uint8), rng.integers(0, CLASSES, count)
