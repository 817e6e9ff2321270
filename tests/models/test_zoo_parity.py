"""The zoo through each backend: parameters after a hundred steps, batches and metrics are PyTorch's."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from exported_models import BATCH, LONGEST_S, ZOO, training_artefact

from models.arrays import Arrays
from models.backends import Backend, DefiningBackend, StepReport, TrainPlan, open_backend
from models.datasets import Dataset
from models.manifest import Runtime

pytestmark = pytest.mark.timeout(LONGEST_S)

RUNTIMES = ("onnx", "tflite")
STEPS, LEARNING_RATE, TOLERANCE = 100, 0.01, 1e-5
SAMPLES = 5 * BATCH + 3  # every sixth batch is of three
SEEDS = (1, 2, 3)
PLAN = TrainPlan(epochs=None, steps=STEPS, batch_size=BATCH, learning_rate=LEARNING_RATE)
DRAWS = ("convnet",)  # its dropout draws otherwise than torch's


def data(model: str, seed: int) -> Dataset:
    shape, classes = ZOO[model]
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(SAMPLES, *shape)).astype(np.float32)
    return Dataset("noise", x, rng.integers(0, classes, SAMPLES), classes)


def opened(model: str, runtime: Runtime) -> Backend:
    shape, classes = ZOO[model]
    path = training_artefact(model, runtime)
    return open_backend(runtime, model, shape=shape, classes=classes, seed=0, artefact=path, threads=1)


@cache
def torchs(model: str) -> DefiningBackend:
    shape, classes = ZOO[model]
    return open_backend("torch", model, shape=shape, classes=classes, seed=1, threads=1)


def trained(backend: Backend, model: str, seed: int) -> tuple[Arrays, list[StepReport]]:
    reports: list[StepReport] = []
    start = torchs(model).initial()
    rng = np.random.default_rng(seed)
    result = backend.train(start, data(model, seed), PLAN, rng, on_step=reports.append)
    return result.arrays, reports


def apart(one: Arrays, other: Arrays) -> float:
    assert list(one) == list(other)
    return max(float(np.abs(one[name].astype(np.float64) - other[name]).max()) for name in one)


@cache
def reference(model: str, seed: int) -> tuple[Arrays, list[StepReport], float]:
    """What torch makes of it, and how far it is from itself with its other kernels.

    A ReLU at zero, or a maximum of equals, falls to either side by the last bit of a sum; from there on two
    runs differ by more than rounding, and the deeper the network the sooner.
    """
    due, reports = trained(torchs(model), model, seed)
    with torch.backends.mkldnn.flags(enabled=False):
        other, _ = trained(torchs(model), model, seed)
    return due, reports, apart(due, other)


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("model", [model for model in ZOO if model not in DRAWS])
def test_a_hundred_steps_end_where_torchs_do(model: str, runtime: Runtime) -> None:
    backend = opened(model, runtime)
    shares = []
    for seed in SEEDS:
        due, steps, own = reference(model, seed)
        came, told = trained(backend, model, seed)
        # The first steps, before anything falls to another side: the same samples in the same order.
        np.testing.assert_allclose(
            [step.loss for step in told[:6]], [step.loss for step in steps[:6]], rtol=1e-4
        )
        assert [step.samples for step in told] == [step.samples for step in steps]
        shares.append(apart(came, due) / max(TOLERANCE, 2 * own))
        if shares[-1] <= 1:
            return
    assert min(shares) <= 1, shares


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("model", ZOO)
def test_evaluation_tells_what_torchs_does(model: str, runtime: Runtime) -> None:
    arrays, samples = torchs(model).initial(), data(model, 7)
    came, due = (one.evaluate(arrays, samples) for one in (opened(model, runtime), torchs(model)))
    assert came.loss == pytest.approx(due.loss, rel=1e-5)
    assert (came.accuracy, came.samples) == (due.accuracy, due.samples)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_dropout_draws_from_the_generator_that_is_passed(runtime: Runtime) -> None:
    backend = opened("convnet", runtime)
    first, again, other = (trained(backend, "convnet", seed)[0] for seed in (1, 1, 2))
    assert apart(first, again) == 0
    start, one = torchs("convnet").initial(), data("convnet", 1)
    plan = TrainPlan(epochs=None, steps=2, batch_size=BATCH, learning_rate=1e-30)
    one = one.take(np.zeros(BATCH, dtype=np.intp))
    losses: list[float] = []
    # One sample again and again, and a step too small to move anything: only dropout makes a difference.
    backend.train(
        start, one, plan, np.random.default_rng(3), on_step=lambda report: losses.append(report.loss)
    )
    assert len(set(losses)) == 2
    assert apart(first, other) > 0
