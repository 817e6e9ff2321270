"""A LeNet-5 trained on the handwritten digits at twice their size, and exported for inference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from models.artefacts import ModelCard, load_model, save_model
from models.backends import TrainPlan, open_backend
from models.datasets import Normalize, load, scale
from models.export import export_inference
from models.manifest import Manifest

MODEL, SHAPE, CLASSES = "lenet5", (1, 16, 16), 10
NORMALIZE = Normalize(0.3, 0.4)
SAMPLES = 360
"""In the test split."""


def write_digits(path: Path) -> Path:
    """Return `path`, now an NPZ file of the digits of 16×16: LeNet-5 takes no smaller ones."""
    stored: dict[str, Any] = {}
    for split in ("train", "test"):
        digits = load("digits", split=split)
        stored[f"x_{split}"] = np.kron(scale(digits, None).x, np.ones((1, 1, 2, 2), np.float32))
        stored[f"y_{split}"] = digits.y
    np.savez(path, **stored)
    return path


def train(path: Path, digits: Path) -> Path:
    """Return `path`, now a trained model's file; nine of ten digits are told right."""
    backend = open_backend("torch", MODEL, shape=SHAPE, classes=CLASSES, seed=0, threads=1)
    plan = TrainPlan(epochs=4, steps=None, batch_size=16, learning_rate=0.05, momentum=0.5)
    data = scale(load(str(digits), split="train"), NORMALIZE)
    arrays = backend.train(backend.initial(), data, plan, np.random.default_rng(0)).arrays
    save_model(path, arrays, ModelCard(MODEL, SHAPE, CLASSES, "digits-1", 4, NORMALIZE).metadata())
    return path


def export(trained: Path, path: Path, *, batch: int = 1) -> Manifest:
    """Make `path`, by its suffix an ONNX or TFLite file, the trained model's."""
    arrays, _ = load_model(trained)
    return export_inference(
        MODEL,
        arrays,
        shape=SHAPE,
        classes=CLASSES,
        runtime="onnx" if path.suffix == ".onnx" else "tflite",
        path=path,
        normalize=NORMALIZE,
        batch=batch,
    )
