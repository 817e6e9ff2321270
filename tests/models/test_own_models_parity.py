"""Users' own models: a hundred steps in each runtime end where PyTorch's do.

They are small, and have what no quick model of the zoo has.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
from exported_models import LONGEST_S
from torch import nn

from models.arrays import Arrays
from models.backends import DefiningBackend, TrainPlan, open_backend
from models.backends.torch import open_model
from models.datasets import Dataset, digits
from models.export import export_training
from models.manifest import Runtime
from models.registry import ModelSpec

pytestmark = pytest.mark.timeout(LONGEST_S)

SHAPE, CLASSES = (1, 8, 8), 10
BATCH_SIZE, STEPS = 32, 100
RELUS_TOLERANCE = 1e-2
"""Inputs within rounding of zero fall to either side of it."""
TOLERANCE = 1e-5
PLAN = TrainPlan(epochs=None, steps=STEPS, batch_size=BATCH_SIZE, learning_rate=0.01)


def with_batch_normalisation(_shape: tuple[int, ...], classes: int) -> nn.Module:
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


def with_depthwise_convolution(_shape: tuple[int, ...], classes: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.ELU(),
        nn.Conv2d(4, 4, 3, padding=1),  # to as many channels: ONNX Runtime has it transposed
        nn.GroupNorm(2, 4),
        nn.ELU(inplace=True),
        nn.Conv2d(4, 4, 3, stride=2, padding=1, groups=4),  # leaves out the last row and column of padding
        nn.Flatten(),
        nn.Linear(4 * 4 * 4, classes),
    )


NORMALISED = ModelSpec("normalised", "convolutions with batch normalisation", with_batch_normalisation)
DEPTHWISE = ModelSpec("depthwise", "convolutions, the last of them by channel", with_depthwise_convolution)


def some_digits() -> Dataset:
    stored = digits.read().train
    assert stored is not None
    several = 10 * BATCH_SIZE
    return Dataset("digits", stored.x[:several], stored.y[:several], CLASSES)


@cache
def torchs(model: ModelSpec) -> DefiningBackend:
    return open_model(model, shape=SHAPE, classes=CLASSES, seed=1, threads=1)


def trained(model: ModelSpec, runtime: Runtime, folder: Path) -> tuple[Arrays, Arrays]:
    """Return the parameters after the same steps, in that runtime and in PyTorch: alike in name and form."""
    path = folder / f"{model.name}.{runtime}"
    export_training(model, shape=SHAPE, classes=CLASSES, runtime=runtime, path=path, batch=BATCH_SIZE)
    other = open_backend(runtime, model.name, shape=SHAPE, classes=CLASSES, seed=0, artefact=path, threads=1)
    start, samples = torchs(model).initial(), some_digits()
    came, due = (
        one.train(start, samples, PLAN, np.random.default_rng(3)).arrays for one in (other, torchs(model))
    )
    assert [(name, array.dtype, array.shape) for name, array in came.items()] == [
        (name, array.dtype, array.shape) for name, array in due.items()
    ]
    return came, due


@pytest.mark.parametrize("runtime", ["onnx", "tflite"])
def test_a_hundred_steps_with_batch_normalisation_end_where_torchs_do(
    runtime: Runtime, tmp_path: Path
) -> None:
    came, due = trained(NORMALISED, runtime, tmp_path)
    for name, array in due.items():
        np.testing.assert_allclose(came[name], array, rtol=0, atol=RELUS_TOLERANCE, err_msg=name)
    # The statistics have moved from zeros and ones, and every step counts.
    assert np.abs(due["1.running_mean"]).max() > 10 * RELUS_TOLERANCE
    assert np.abs(due["4.running_var"] - 1).max() > 10 * RELUS_TOLERANCE
    assert [came[f"{layer}.num_batches_tracked"].item() for layer in (1, 4)] == [STEPS, STEPS]


@pytest.mark.parametrize("runtime", ["onnx", "tflite"])
def test_a_hundred_steps_with_elu_groups_and_depthwise_kernels_end_where_torchs_do(
    runtime: Runtime, tmp_path: Path
) -> None:
    came, due = trained(DEPTHWISE, runtime, tmp_path)
    start = torchs(DEPTHWISE).initial()
    for name, array in due.items():
        np.testing.assert_allclose(came[name], array, rtol=0, atol=TOLERANCE, err_msg=name)
        assert np.abs(array - start[name]).max() > 100 * TOLERANCE, f"{name} has not moved"
