"""The PyTorch backend: its arithmetic against numpy and torch's optimiser, determinism, refusals."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from models.arrays import Arrays
from models.backends import Backend, StepReport, TrainPlan, available_backends, open_backend
from models.backends.torch import TorchBackend, open_model
from models.datasets import Dataset, load, scale
from models.registry import ModelSpec
from trellis.errors import (
    Canceled,
    ConfigError,
    DataError,
    InvalidInput,
    MissingExtra,
    Refused,
    TensorError,
    TrainingFailed,
)

STEP = TrainPlan(epochs=None, steps=1, batch_size=6, learning_rate=0.5)


def _toy(samples: int = 6, shape: tuple[int, ...] = (4,), classes: int = 3) -> Dataset:
    rng = np.random.default_rng(7)
    x = rng.normal(size=(samples, *shape)).astype(np.float32)
    return Dataset("toy", x, rng.integers(0, classes, samples), classes)


def _backend(model: str = "softmax", shape: tuple[int, ...] = (4,), seed: int = 0) -> Backend:
    return open_backend("torch", model, shape=shape, classes=3, seed=seed)


def _rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def _softmax_gradient(arrays: Arrays, data: Dataset) -> tuple[float, Arrays]:
    """The mean cross-entropy of a linear layer and its gradient, in float64: (p - onehot)ᵀ x / n."""
    weight, bias = arrays["fc.weight"].astype(np.float64), arrays["fc.bias"].astype(np.float64)
    logits = data.x @ weight.T + bias
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    chances = odds / odds.sum(axis=1, keepdims=True)
    loss = -np.log(chances[np.arange(len(data)), data.y]).mean()
    error = (chances - np.eye(3)[data.y]) / len(data)
    return float(loss), {"fc.weight": error.T @ data.x, "fc.bias": error.sum(axis=0)}


def _same(one: Arrays, other: Arrays) -> bool:
    return list(one) == list(other) and all(np.array_equal(one[name], other[name]) for name in one)


def test_one_step_is_the_gradient_that_numpy_computes() -> None:
    backend, data = _backend(), _toy()
    start = backend.initial()
    loss, gradient = _softmax_gradient(start, data)
    result = backend.train(start, data, STEP, _rng())
    for name, slope in gradient.items():
        np.testing.assert_allclose(result.arrays[name], start[name] - 0.5 * slope, atol=1e-6)
    assert result.loss == pytest.approx(loss, abs=1e-6)
    assert (result.samples, result.steps, result.initial_loss) == (6, 1, None)


def test_the_proximal_term_pulls_towards_the_parameters_that_came() -> None:
    # Two steps on all data. Step 1 stands at w_global, so µ changes nothing; step 2 adds µ (w1 - w_global).
    backend, data = _backend(), _toy()
    start = backend.initial()
    plan = TrainPlan(epochs=None, steps=2, batch_size=6, learning_rate=0.5, proximal_mu=0.3)
    expected = {name: array.astype(np.float64) for name, array in start.items()}
    for _ in range(2):
        _, gradient = _softmax_gradient(expected, data)
        expected = {
            name: array - 0.5 * (gradient[name] + 0.3 * (array - start[name]))
            for name, array in expected.items()
        }
    proximal = backend.train(start, data, plan, _rng()).arrays
    plain = backend.train(start, data, TrainPlan(None, 2, 6, 0.5), _rng()).arrays
    for name in start:
        np.testing.assert_allclose(proximal[name], expected[name], atol=1e-6)
        assert np.linalg.norm(proximal[name] - start[name]) < np.linalg.norm(plain[name] - start[name])


def test_momentum_and_weight_decay_are_those_of_torch() -> None:
    backend, data = _backend(), _toy()
    start = backend.initial()
    plan = TrainPlan(epochs=5, steps=None, batch_size=6, learning_rate=0.1, momentum=0.9, weight_decay=0.01)
    layer = nn.Linear(4, 3)
    layer.load_state_dict({name.removeprefix("fc."): torch.tensor(array) for name, array in start.items()})
    optimiser = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    for _ in range(5):
        optimiser.zero_grad()
        nn.functional.cross_entropy(layer(torch.from_numpy(data.x)), torch.from_numpy(data.y)).backward()
        optimiser.step()
    trained = backend.train(start, data, plan, _rng()).arrays
    np.testing.assert_allclose(trained["fc.weight"], layer.weight.detach().numpy(), atol=1e-6)
    np.testing.assert_allclose(trained["fc.bias"], layer.bias.detach().numpy(), atol=1e-6)


def test_evaluation_is_the_mean_over_samples_whatever_the_batches() -> None:
    backend, data = _backend(), _toy(10)
    arrays = backend.initial()
    loss, _ = _softmax_gradient(arrays, data)
    right = (data.x @ arrays["fc.weight"].T + arrays["fc.bias"]).argmax(axis=1) == data.y
    for batch_size in (3, 10, 256):
        result = backend.evaluate(arrays, data, batch_size=batch_size)
        assert result.loss == pytest.approx(loss, abs=1e-6)
        assert (result.accuracy, result.samples) == (right.mean(), 10)


def test_the_initial_loss_is_that_of_the_parameters_that_came() -> None:
    backend, data = _backend(), _toy()
    plan = TrainPlan(epochs=3, steps=None, batch_size=2, learning_rate=0.5, report_initial_loss=True)
    start = backend.initial()
    result = backend.train(start, data, plan, _rng())
    assert result.initial_loss == backend.evaluate(start, data).loss
    assert result.loss < result.initial_loss


def test_initial_parameters_follow_from_model_and_seed_only() -> None:
    one = _backend("mlp", seed=3).initial()
    torch.rand(5)
    assert _same(one, _backend("mlp", seed=3).initial())
    assert not _same(one, _backend("mlp", seed=4).initial())
    assert all(array.dtype == np.float32 and array.flags.c_contiguous for array in one.values())


def test_initial_parameters_are_the_callers_to_change() -> None:
    backend = _backend()
    backend.initial()["fc.bias"][:] = 9
    assert backend.initial()["fc.bias"].max() < 9


@pytest.mark.parametrize("model", ["convnet", "lenet5"])
def test_training_is_the_same_bit_for_bit_and_draws_from_the_generator(model: str) -> None:
    backend, data = _backend(model, (1, 28, 28)), _toy(40, (1, 28, 28))
    plan = TrainPlan(epochs=2, steps=None, batch_size=16, learning_rate=0.1, momentum=0.9)
    start = backend.initial()
    first = backend.train(start, data, plan, _rng(1))
    torch.rand(5)  # what others draw from torch's generator changes nothing
    assert _same(first.arrays, backend.train(start, data, plan, _rng(1)).arrays)
    assert not _same(first.arrays, backend.train(start, data, plan, _rng(2)).arrays)


def test_dropout_draws_anew_at_every_step_and_not_in_evaluation() -> None:
    backend, data = _backend("convnet", (1, 28, 28)), _toy(8, (1, 28, 28))
    arrays, losses = backend.initial(), []
    # A step too small to move float32 parameters: only dropout makes the losses differ.
    plan = TrainPlan(epochs=None, steps=4, batch_size=8, learning_rate=1e-30)
    backend.train(arrays, data, plan, _rng(), on_step=lambda report: losses.append(report.loss))
    assert len(set(losses)) == 4
    assert backend.evaluate(arrays, data) == backend.evaluate(arrays, data)


def test_nothing_leaks_into_torchs_own_generator() -> None:
    torch.manual_seed(5)
    due = torch.rand(3)
    torch.manual_seed(5)
    backend, data = _backend("convnet", (1, 28, 28)), _toy(8, (1, 28, 28))
    backend.train(backend.initial(), data, STEP, _rng())
    assert torch.equal(torch.rand(3), due)


def test_two_threads_that_train_do_not_disturb_each_other() -> None:
    data = _toy(32, (1, 28, 28))
    plan = TrainPlan(epochs=3, steps=None, batch_size=8, learning_rate=0.05)
    backend = _backend("convnet", (1, 28, 28))
    start = backend.initial()
    alone = backend.train(start, data, plan, _rng(0)).arrays
    together: list[Arrays] = []

    def train() -> None:
        together.append(backend.train(start, data, plan, _rng(0)).arrays)

    threads = [threading.Thread(target=train) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [_same(alone, arrays) for arrays in together] == [True, True, True]


def test_what_came_is_never_changed_even_if_it_is_read_only() -> None:
    backend, data = _backend(), _toy()
    start = backend.initial()
    kept = {name: array.copy() for name, array in start.items()}
    for array in (*start.values(), data.x, data.y):
        array.flags.writeable = False
    backend.train(start, data, STEP, _rng())
    backend.evaluate(start, data)
    assert _same(start, kept)


def test_reports_tell_where_training_stands() -> None:
    reports: list[StepReport] = []
    plan = TrainPlan(epochs=2, steps=None, batch_size=4, learning_rate=0.1)
    backend = _backend()
    backend.train(backend.initial(), _toy(6), plan, _rng(), on_step=reports.append)
    seen = [(r.epoch, r.epochs, r.step, r.steps, r.samples) for r in reports]
    assert seen == [(1, 2, 1, 4, 4), (1, 2, 2, 4, 6), (2, 2, 3, 4, 10), (2, 2, 4, 4, 12)]


def test_steps_run_over_as_many_passes_as_they_need() -> None:
    reports: list[StepReport] = []
    plan = TrainPlan(epochs=None, steps=5, batch_size=4, learning_rate=0.1)
    backend = _backend()
    result = backend.train(backend.initial(), _toy(6), plan, _rng(), on_step=reports.append)
    assert [(r.epoch, r.epochs, r.samples) for r in reports] == [
        (1, 3, 4),
        (1, 3, 6),
        (2, 3, 10),
        (2, 3, 12),
        (3, 3, 16),
    ]
    # The last pass's worth of mini-batches: the second of pass 2 (2 samples), the first of pass 3 (4).
    assert result.loss == pytest.approx((2 * reports[3].loss + 4 * reports[4].loss) / 6)


def test_a_call_to_stop_is_heeded_at_the_next_batch() -> None:
    backend, asked = _backend(), []

    def stop_at_third() -> bool:
        asked.append(None)
        return len(asked) == 3

    plan = TrainPlan(epochs=9, steps=None, batch_size=2, learning_rate=0.1)
    with pytest.raises(Canceled, match="training was called off before step 3 of 27"):
        backend.train(backend.initial(), _toy(6), plan, _rng(), should_stop=stop_at_third)
    with pytest.raises(Canceled, match="evaluation was called off before sample 0 of 6"):
        backend.evaluate(backend.initial(), _toy(6), should_stop=lambda: True)


def _normalised(shape: tuple[int, ...], classes: int) -> nn.Module:
    return nn.Sequential(nn.Linear(shape[0], 5), nn.BatchNorm1d(5), nn.Linear(5, classes))


def test_buffers_are_arrays_and_keep_their_types() -> None:
    backend = open_model(ModelSpec("normalised", "", _normalised), shape=(4,), classes=3, seed=0)
    start = backend.initial()
    counter = start["1.num_batches_tracked"]
    assert (counter.shape, counter.dtype, counter.item()) == ((), np.int64, 0)
    trained = backend.train(start, _toy(), TrainPlan(2, None, 3, 0.1), _rng()).arrays
    assert (trained["1.num_batches_tracked"].dtype, trained["1.num_batches_tracked"].item()) == (np.int64, 4)
    assert not np.array_equal(trained["1.running_mean"], start["1.running_mean"])
    backend.evaluate(trained, _toy())


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
        ({"proximal_mu": float("inf")}, "proximal_mu: inf came, a number of at least 0 is due"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(fields: dict[str, Any], problem: str) -> None:
    sound: dict[str, Any] = {"epochs": 1, "steps": None, "batch_size": 8, "learning_rate": 0.1}
    with pytest.raises(ConfigError) as caught:
        TrainPlan(**{**sound, **fields})
    assert str(caught.value) == f"training plan: {problem}"


def test_torch_is_available_and_others_are_not_known() -> None:
    assert available_backends() == ["torch"]
    assert isinstance(_backend(), TorchBackend)
    assert _backend().name == "torch"
    with pytest.raises(ConfigError, match="backend 'torhc': is not known; known are torch"):
        open_backend("torhc", "mlp", shape=(4,), classes=3, seed=0)


def test_a_missing_runtime_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert available_backends() == []
    with pytest.raises(MissingExtra) as caught:
        open_backend("torch", "mlp", shape=(4,), classes=3, seed=0)
    assert str(caught.value) == "torch is not installed: pip install 'trellis-fl[torch]'"


def test_opening_a_model_that_is_unknown_or_does_not_fit_fails() -> None:
    with pytest.raises(Refused, match="model 'nope' is not known here"):
        open_backend("torch", "nope", shape=(4,), classes=3, seed=0)
    with pytest.raises(InvalidInput, match=r"model 'convnet': data.shape: samples have shape \(4,\)"):
        _backend("convnet")


def test_the_digits_are_learnt_in_a_few_epochs() -> None:
    train, test = (scale(load("digits", split=split), None) for split in ("train", "test"))
    backend = open_backend("torch", "mlp", shape=(1, 8, 8), classes=10, seed=42)
    plan = TrainPlan(epochs=5, steps=None, batch_size=16, learning_rate=0.05, momentum=0.9)
    trained = backend.train(backend.initial(), train, plan, _rng(42))
    assert backend.evaluate(trained.arrays, test).accuracy >= 0.9
    assert trained.accuracy >= 0.9
