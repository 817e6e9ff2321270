"""What the PyTorch backend refuses, and how it fails: every message says who, what came and what was due."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from models.backends import DefiningBackend, TrainPlan, open_backend
from models.backends.torch import open_model
from models.datasets import Dataset
from models.registry import ModelSpec
from trellis.errors import (
    ConfigError,
    DataError,
    InvalidInput,
    Refused,
    TensorError,
    TrainingFailed,
)

STEP = TrainPlan(epochs=None, steps=1, batch_size=6, learning_rate=0.5)


def _toy(samples: int = 6, shape: tuple[int, ...] = (4,), classes: int = 3) -> Dataset:
    rng = np.random.default_rng(7)
    x = rng.normal(size=(samples, *shape)).astype(np.float32)
    return Dataset("toy", x, rng.integers(0, classes, samples), classes)


def _backend(model: str = "softmax", shape: tuple[int, ...] = (4,), seed: int = 0) -> DefiningBackend:
    return open_backend("torch", model, shape=shape, classes=3, seed=seed)


def _rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def _normalised(shape: tuple[int, ...], classes: int) -> nn.Module:
    return nn.Sequential(nn.Linear(shape[0], 5), nn.BatchNorm1d(5), nn.Linear(5, classes))


class Gives(nn.Module):
    """Answers with whatever `answer` makes of the samples."""

    def __init__(self, answer: Callable[[torch.Tensor], object]) -> None:
        super().__init__()
        self._answer = answer

    def forward(self, x: torch.Tensor) -> object:
        return self._answer(x)


def _in_half(_shape: tuple[int, ...], _classes: int) -> nn.Module:
    return nn.Linear(4, 3, dtype=torch.bfloat16)


@pytest.mark.parametrize(
    ("build", "problem"),
    [
        (lambda *_: {}["size"], "cannot be built for samples of shape (4,) in 3 classes: KeyError: 'size'"),
        (lambda *_: None, "its build gives a NoneType, a torch.nn.Module is due"),
        (_in_half, "its array 'weight' cannot be sent: TypeError: Got unsupported ScalarType BFloat16"),
        (lambda *_: Gives(lambda x: x.logits), "does not take samples of shape (4,): AttributeError: "),
        (lambda *_: Gives(lambda x: (x, x)), "gives a tuple for two samples of shape (4,), (2, 3) is due"),
        (lambda *_: Gives(lambda x: x), "gives shape (2, 4) for two samples of shape (4,), (2, 3) is due"),
    ],
)
def test_a_model_of_ones_own_that_is_none_is_refused(build: Any, problem: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        open_model(ModelSpec("mine", "", build), shape=(4,), classes=3, seed=0)
    assert str(caught.value).startswith(f"model 'mine': {problem}")


@pytest.mark.parametrize(
    "error", [MemoryError("no room"), FileNotFoundError("no weights"), Refused("model", "no")]
)
def test_what_is_not_the_models_own_fault_while_it_is_built_stays_what_it_is(error: Exception) -> None:
    def build(*_: object) -> nn.Module:
        raise error

    with pytest.raises(type(error), match=str(error)):
        open_model(ModelSpec("mine", "", build), shape=(4,), classes=3, seed=0)


def test_memory_that_pytorch_does_not_get_is_no_fault_of_the_models() -> None:
    with pytest.raises(RuntimeError, match="allocate memory"):
        open_model(
            ModelSpec("mine", "", lambda *_: Gives(lambda _: torch.empty(2**50))),
            shape=(4,),
            classes=3,
            seed=0,
        )


def test_what_torch_cannot_do_is_a_failed_training_that_says_why() -> None:
    backend = open_model(ModelSpec("normalised", "", _normalised), shape=(4,), classes=3, seed=0)
    with pytest.raises(
        TrainingFailed, match="model 'normalised' failed in torch: Expected more than 1 value"
    ):
        backend.train(backend.initial(), _toy(1), TrainPlan(1, None, 4, 0.1), _rng())


def test_arrays_that_do_not_fit_are_all_named() -> None:
    backend = _backend("mlp")
    arrays = backend.initial()
    arrays["fc3.bias"] = np.zeros(62, np.float32)
    arrays["fc2.bias"] = arrays["fc2.bias"].astype(np.float64)
    arrays["fc9.bias"] = arrays.pop("fc1.bias")
    with pytest.raises(TensorError) as caught:
        backend.train(arrays, _toy(), STEP, _rng())
    assert str(caught.value) == (
        "the arrays do not fit the model: 4 faults\n"
        "  - tensor 'fc1.bias' is missing, the model has it\n"
        "  - tensor 'fc9.bias' is not one of the model's\n"
        "  - tensor 'fc2.bias' is float64, the model has float32\n"
        "  - tensor 'fc3.bias' has shape (62,), the model has (3,)"
    )
    with pytest.raises(TensorError):
        backend.evaluate(arrays, _toy())


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (_toy(0), "data set 'toy': holds no samples"),
        (_toy(3, (5,)), "data set 'toy': samples have shape (5,), the model takes (4,)"),
        (_toy(9, classes=9), "data set 'toy': labels run from 0 to 8, the model has 3 classes"),
        (
            Dataset("toy", np.zeros((2, 4), np.uint8), np.zeros(2, np.int64), 3),
            "data set 'toy': samples are uint8, the model takes float32 (scale the data set first)",
        ),
    ],
)
def test_data_that_cannot_be_fed_are_refused(data: Dataset, problem: str) -> None:
    backend = _backend()
    for call in (
        lambda: backend.train(backend.initial(), data, STEP, _rng()),
        lambda: backend.evaluate(backend.initial(), data),
    ):
        with pytest.raises(DataError) as caught:
            call()
        assert str(caught.value) == problem


def test_a_loss_that_is_not_finite_names_the_step() -> None:
    backend = _backend()
    plan = TrainPlan(epochs=50, steps=None, batch_size=6, learning_rate=3e38)
    with pytest.raises(
        TrainingFailed, match=r"step \d+ of 50: the loss is (nan|inf); a lower learning rate than 3e\+38"
    ):
        backend.train(backend.initial(), _toy(), plan, _rng())


def test_a_parameter_that_is_not_finite_is_named() -> None:
    backend, data = _backend(), _toy()
    big = Dataset("toy", data.x * np.float32(1e4), data.y, 3)
    plan = TrainPlan(epochs=None, steps=1, batch_size=6, learning_rate=3e38)
    with pytest.raises(
        TrainingFailed, match=r"model 'softmax': tensor 'fc.weight' is not finite after step 1"
    ):
        backend.train(backend.initial(), big, plan, _rng())


def test_evaluation_of_a_model_gone_wrong_fails() -> None:
    backend = _backend()
    arrays = backend.initial()
    arrays["fc.bias"][0] = np.nan
    with pytest.raises(TrainingFailed, match="evaluation: the loss on samples 0 to 5 of 'toy' is nan"):
        backend.evaluate(arrays, _toy())


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"epochs": None}, "epochs: epochs None and steps None came, exactly one is due"),
        ({"steps": 3}, "epochs: epochs 1 and steps 3 came, exactly one is due"),
        ({"epochs": 0}, "epochs: 0 came, at least 1 is due"),
        ({"batch_size": 0}, "batch_size: 0 came, at least 1 is due"),
        ({"learning_rate": float("nan")}, "learning_rate: nan came, a number above 0 is due"),
        ({"momentum": 1.0}, "momentum: 1.0 came, a number from 0 to below 1 is due"),
        ({"weight_decay": -1.0}, "weight_decay: -1.0 came, a number of at least 0 is due"),
        ({"optimizer": "adamw"}, "optimizer: 'adamw' came, sgd or adam is due"),
        (
            {"optimizer": "adam", "momentum": 0.9},
            "momentum: 0.9 came with optimizer adam, which has moments of its own (leave momentum out, or "
            "take sgd)",
        ),
        ({"clip_norm": 0.0}, "clip_norm: 0.0 came, a number above 0 is due"),
        ({"proximal_mu": float("inf")}, "proximal_mu: inf came, a number of at least 0 is due"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(fields: dict[str, Any], problem: str) -> None:
    sound: dict[str, Any] = {"epochs": 1, "steps": None, "batch_size": 8, "learning_rate": 0.1}
    with pytest.raises(ConfigError) as caught:
        TrainPlan(**{**sound, **fields})
    assert str(caught.value) == f"training plan: {problem}"


def test_opening_a_model_that_is_unknown_or_does_not_fit_fails() -> None:
    with pytest.raises(Refused, match="model 'nope' is not known here"):
        open_backend("torch", "nope", shape=(4,), classes=3, seed=0)
    with pytest.raises(InvalidInput, match=r"model 'convnet': data.shape: samples have shape \(4,\)"):
        _backend("convnet")
