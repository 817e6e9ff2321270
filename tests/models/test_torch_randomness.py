"""What models draw in training follows from the seed, whoever trains beside them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from models.arrays import Arrays
from models.backends import StepReport, TrainPlan
from models.backends.torch import TorchBackend, open_model
from models.datasets import Dataset
from models.registry import ModelSpec

RATE, STEPS, BATCH = 0.5, 5, 4
PLAN = TrainPlan(epochs=None, steps=STEPS, batch_size=BATCH, learning_rate=RATE)
TOGETHER_S = 20.0


class Odd(nn.Module):
    """Two layers; between them, in training from step `since` on, what a user's `forward` may do."""

    def __init__(self, between: Callable[[torch.Tensor], torch.Tensor], since: int = 1) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 8), nn.Linear(8, 3)
        self.between, self.since, self.step = between, since, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.one(x)
        if self.training:
            self.step += 1
            x = self.between(x) if self.step >= self.since else x
        logits: torch.Tensor = self.two(x)
        return logits


def _noisy(x: torch.Tensor) -> torch.Tensor:
    return x + torch.randn_like(x)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "layer": lambda: Odd(nn.Dropout(0.5)),
    "function": lambda: Odd(functional.dropout),
    "rrelu": lambda: Odd(nn.RReLU()),
    "noise": lambda: Odd(_noisy),
    "late-function": lambda: Odd(functional.dropout, since=3),
    "late-noise": lambda: Odd(_noisy, since=2),
    "none": lambda: Odd(functional.relu),
}


def _backend(build: Callable[[], nn.Module]) -> TorchBackend:
    return open_model(ModelSpec("odd", "", lambda *_: build()), shape=(4,), classes=3, seed=1)


def _data() -> Dataset:
    rng = np.random.default_rng(7)
    return Dataset("toy", rng.normal(size=(6, 4)).astype(np.float32), rng.integers(0, 3, 6), 3)


def _trained(backend: TorchBackend, on_step: Callable[[StepReport], None] | None = None) -> Arrays:
    rng = np.random.default_rng(2)
    return backend.train(backend.initial(), _data(), PLAN, rng, on_step=on_step).arrays


def _by_torch_alone(build: Callable[[], nn.Module], start: Arrays) -> Arrays:
    """Return what SGD makes of `start`: the batches of one generator, all that is drawn of one seed."""
    rng, data, module = np.random.default_rng(2), _data(), build()
    module.load_state_dict({name: torch.tensor(array) for name, array in start.items()})
    optimiser = torch.optim.SGD(module.parameters(), lr=RATE)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(rng.spawn(1)[0].integers(2**63 - 1)))
        orders = [rng.permutation(6) for _ in range(3)]
        batches = [batch for order in orders for batch in (order[:BATCH], order[BATCH:])]
        for chosen in batches[:STEPS]:
            optimiser.zero_grad()
            logits = module(torch.tensor(data.x[chosen]))
            torch.autograd.backward(functional.cross_entropy(logits, torch.tensor(data.y[chosen])))
            optimiser.step()
    return {name: tensor.detach().numpy() for name, tensor in module.state_dict().items()}


@pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)
def test_what_is_drawn_follows_the_seed_whoever_trains_beside_it(build: Callable[[], nn.Module]) -> None:
    backend, others = _backend(build), [_backend(MODELS["none"]), _backend(MODELS["late-noise"])]
    due = _by_torch_alone(build, backend.initial())
    torch.manual_seed(5)
    before = torch.get_rng_state()
    with ThreadPoolExecutor(4) as threads:
        running = [threads.submit(_trained, one) for one in [backend, *others] * 6]
        done = [one.result(TOGETHER_S) for one in running]
    for found in done[::3]:
        for name, array in found.items():
            np.testing.assert_allclose(array, due[name], rtol=1e-4, atol=1e-6)
    assert torch.equal(torch.get_rng_state(), before)


def test_what_is_drawn_late_makes_all_steps_anew() -> None:
    backend, steps = _backend(MODELS["late-function"]), []
    _trained(backend, lambda report: steps.append(report.step))
    assert steps == [1, 2, 1, 2, 3, 4, 5]


def test_models_that_draw_nothing_are_run_beside_each_other() -> None:
    both = threading.Barrier(2)

    def meet(x: torch.Tensor) -> torch.Tensor:
        both.wait(TOGETHER_S)
        return x

    def report(report: StepReport) -> None:
        if report.step == 1:  # which every model has to itself: whether it draws is found out in it
            both.wait(TOGETHER_S)

    backend = _backend(lambda: Odd(meet, since=2))
    with ThreadPoolExecutor(2) as threads:
        for running in [threads.submit(_trained, backend, report) for _ in range(2)]:
            running.result(TOGETHER_S * 2)
