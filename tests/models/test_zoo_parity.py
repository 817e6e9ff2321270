"""The zoo through each backend: parameters after a hundred steps, batches and metrics are PyTorch's.

Real samples, of a task's default batch size: handwritten digits, enlarged to the pictures that a model takes,
and waves for windows of sensors. The greatest difference of any element of any parameter counts, as it is.

One of three draws must pass. Where a ReLU's input, or the difference of two that are pooled, is within
rounding of zero, runtimes fall to either side of it, and so does PyTorch with other kernels of its own. A
hundred steps of so small a model as `mlp` or `sensor-cnn` meet one such or none; it moves parameters by some
1e-5. The deeper models would meet many, and end 1e-3 apart on any data: they have no ReLU.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from exported_models import BATCH, EVERY_MODEL, LONGEST_S, ZOO, training_artefact

from models.arrays import Arrays
from models.backends import Backend, DefiningBackend, StepReport, TrainPlan, open_backend
from models.datasets import Dataset, digits
from models.manifest import Runtime

pytestmark = pytest.mark.timeout(LONGEST_S)

RUNTIMES = ("onnx", "tflite")
STEPS, LEARNING_RATE, TOLERANCE = 100, 0.01, 1e-5
BATCH_SIZE = 32
SEEDS = (1, 2, 3)
SAMPLES = 5 * BATCH_SIZE + 3  # every sixth batch is of three
PLAN = TrainPlan(epochs=None, steps=STEPS, batch_size=BATCH_SIZE, learning_rate=LEARNING_RATE)
DRAWS = ("convnet",)  # its dropout draws otherwise than torch's


def data(model: str, seed: int) -> Dataset:
    """Return what a task gives such a model: (samples, *shape) float32, with true labels."""
    shape, classes = ZOO[model]
    rng = np.random.default_rng(seed)
    if len(shape) == 2:
        return waves(shape, classes, rng)
    stored = digits.read().train
    assert stored is not None
    chosen = rng.permutation(len(stored.x))[:SAMPLES]
    zoom = shape[1] // stored.x.shape[2]
    margin = (shape[1] - zoom * stored.x.shape[2]) // 2
    large = stored.x[chosen].repeat(zoom, axis=2).repeat(zoom, axis=3)
    large = np.pad(large, ((0, 0), (0, 0), (margin, margin), (margin, margin)))
    return Dataset("digits", large.repeat(shape[0], axis=1), stored.y[chosen], classes)


def waves(shape: tuple[int, ...], classes: int, rng: np.random.Generator) -> Dataset:
    """Return windows of readings: a frequency for every class, a phase for every channel, and some noise."""
    y = rng.integers(0, classes, SAMPLES)
    time = np.linspace(0, 2 * np.pi, shape[1])
    phase = rng.uniform(0, 2 * np.pi, (SAMPLES, shape[0], 1))
    x = np.sin((y[:, np.newaxis, np.newaxis] + 1) * time + phase) + 0.1 * rng.normal(size=(SAMPLES, *shape))
    return Dataset("waves", x.astype(np.float32), y, classes)


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
def reference(model: str, seed: int) -> tuple[Arrays, list[StepReport]]:
    return trained(torchs(model), model, seed)


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("model", [model for model in EVERY_MODEL if model not in DRAWS])
def test_a_hundred_steps_end_where_torchs_do(model: str, runtime: Runtime) -> None:
    backend = opened(model, runtime)
    found: list[float] = []
    while not found or (found[-1] > TOLERANCE and len(found) < len(SEEDS)):
        seed = SEEDS[len(found)]
        due, steps = reference(model, seed)
        came, told = trained(backend, model, seed)
        # The loss of each step is that of its own samples: the order of batches is the same.
        np.testing.assert_allclose([step.loss for step in told], [step.loss for step in steps], rtol=1e-4)
        assert [step.samples for step in told] == [step.samples for step in steps]
        found.append(apart(came, due))
    assert min(found) <= TOLERANCE, found


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("model", EVERY_MODEL)
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
