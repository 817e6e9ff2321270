"""A user's own model with batch normalisation: a hundred steps in each runtime, statistics included."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from exported_models import LONGEST_S
from torch import nn

from models.backends import TrainPlan, open_backend
from models.backends.torch import open_model
from models.datasets import Dataset, digits
from models.export import export_training
from models.manifest import Runtime
from models.registry import ModelSpec

pytestmark = pytest.mark.timeout(LONGEST_S)

SHAPE, CLASSES = (1, 8, 8), 10
BATCH_SIZE, STEPS, TOLERANCE = 32, 100, 1e-2
PLAN = TrainPlan(epochs=None, steps=STEPS, batch_size=BATCH_SIZE, learning_rate=0.01)


def build(_shape: tuple[int, ...], classes: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * 4 * 4, classes),
    )


MODEL = ModelSpec("ours", "two convolutions with batch normalisation", build)


def some_digits() -> Dataset:
    stored = digits.read().train
    assert stored is not None
    several = 10 * BATCH_SIZE
    return Dataset("digits", stored.x[:several], stored.y[:several], CLASSES)


@pytest.mark.parametrize("runtime", ["onnx", "tflite"])
def test_a_hundred_steps_with_batch_normalisation_end_where_torchs_do(
    runtime: Runtime, tmp_path: Path
) -> None:
    path = tmp_path / f"ours.{runtime}"
    export_training(MODEL, shape=SHAPE, classes=CLASSES, runtime=runtime, path=path, batch=BATCH_SIZE)
    torchs = open_model(MODEL, shape=SHAPE, classes=CLASSES, seed=1, threads=1)
    other = open_backend(runtime, "ours", shape=SHAPE, classes=CLASSES, seed=0, artefact=path, threads=1)
    start, samples = torchs.initial(), some_digits()
    due, came = (one.train(start, samples, PLAN, np.random.default_rng(3)).arrays for one in (torchs, other))
    assert list(came) == list(due)
    for name, array in due.items():
        assert (came[name].dtype, came[name].shape) == (array.dtype, array.shape), name
        np.testing.assert_allclose(came[name], array, rtol=0, atol=TOLERANCE, err_msg=name)
    # The statistics have moved from zeros and ones, and every step counts.
    assert np.abs(due["1.running_mean"]).max() > 10 * TOLERANCE
    assert np.abs(due["4.running_var"] - 1).max() > 10 * TOLERANCE
    assert [came[f"{layer}.num_batches_tracked"].item() for layer in (1, 4)] == [STEPS, STEPS]
