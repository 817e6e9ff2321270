"""The PyTorch backend: its arithmetic against numpy and torch's optimiser, and its determinism."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from torch import nn

from models.arrays import Arrays
from models.backends import DefiningBackend, StepReport, TrainPlan, open_backend
from models.backends.torch import open_model
from models.datasets import Dataset, load, scale
from models.registry import ModelSpec
from trellis.errors import Canceled

STEP = TrainPlan(epochs=None, steps=1, batch_size=6, learning_rate=0.5)


def _toy(samples: int = 6, shape: tuple[int, ...] = (4,), classes: int = 3) -> Dataset:
    rng = np.random.default_rng(7)
    x = rng.normal(size=(samples, *shape)).astype(np.float32)
    return Dataset("toy", x, rng.integers(0, classes, samples), classes)


def _backend(model: str = "softmax", shape: tuple[int, ...] = (4,), seed: int = 0) -> DefiningBackend:
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
    backend, data = _backend("convnet", (1, 28, 28)), _toy(1, (1, 28, 28)).take(np.zeros(8, dtype=np.intp))
    arrays, losses = backend.initial(), []
    # One sample eight times over, and a step too small to move a float32: only dropout makes a difference.
    plan = TrainPlan(epochs=None, steps=4, batch_size=8, learning_rate=1e-30)
    backend.train(arrays, data, plan, _rng(), on_step=lambda report: losses.append(report.loss))
    backend.train(arrays, data, plan, _rng(1), on_step=lambda report: losses.append(report.loss))
    assert len(set(losses)) == 8  # another generator draws otherwise
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


def test_the_digits_are_learnt_in_a_few_epochs() -> None:
    train, test = (scale(load("digits", split=split), None) for split in ("train", "test"))
    backend = open_backend("torch", "mlp", shape=(1, 8, 8), classes=10, seed=42)
    plan = TrainPlan(epochs=5, steps=None, batch_size=16, learning_rate=0.05, momentum=0.9)
    trained = backend.train(backend.initial(), train, plan, _rng(42))
    assert backend.evaluate(trained.arrays, test).accuracy >= 0.9
    assert trained.accuracy >= 0.9
