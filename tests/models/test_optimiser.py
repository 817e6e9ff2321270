"""The local optimiser against `torch.optim`, on the same gradients step for step."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from models.arrays import Arrays, copied
from models.backends import TrainPlan
from models.backends.optimiser import LocalOptimiser

STEPS = 50
SHAPES: dict[str, tuple[int, ...]] = {"weight": (7, 5), "bias": (5,), "scale": ()}


def plan(**changed: Any) -> TrainPlan:
    return TrainPlan(**{"epochs": None, "steps": STEPS, "batch_size": 1, "learning_rate": 0.01, **changed})


def start() -> Arrays:
    rng = np.random.default_rng(3)
    return {name: np.asarray(rng.normal(size=shape), np.float32) for name, shape in SHAPES.items()}


def slopes(step: int) -> Arrays:
    rng = np.random.default_rng([5, step])
    return {name: np.asarray(rng.normal(size=shape), np.float32) for name, shape in SHAPES.items()}


def ours(chosen: TrainPlan) -> Arrays:
    parameters = start()
    optimiser = LocalOptimiser(parameters, chosen)
    for step in range(STEPS):
        optimiser.step(slopes(step))
    return parameters


def torchs(chosen: TrainPlan) -> Arrays:
    """The plan as a loop of torch does it: `backward`, `clip_grad_norm_`, `step`."""
    parameters = {name: torch.nn.Parameter(torch.tensor(array)) for name, array in start().items()}
    came = {name: torch.tensor(array) for name, array in start().items()}
    rule: torch.optim.Optimizer
    if chosen.optimizer == "adam":
        rule = torch.optim.Adam(
            parameters.values(), lr=chosen.learning_rate, weight_decay=chosen.weight_decay
        )
    else:
        rule = torch.optim.SGD(
            parameters.values(),
            lr=chosen.learning_rate,
            momentum=chosen.momentum,
            weight_decay=chosen.weight_decay,
        )
    for step in range(STEPS):
        rule.zero_grad()
        slope = slopes(step)
        # Linear in the parameters: its gradient is the slope, and the proximal term's stands beside it.
        objective = sum(
            (part * torch.tensor(slope[name])).sum()
            + chosen.proximal_mu / 2 * ((part - came[name]) ** 2).sum()
            for name, part in parameters.items()
        )
        torch.autograd.backward(torch.as_tensor(objective))
        if chosen.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(parameters.values(), chosen.clip_norm)
        rule.step()
    return {name: part.detach().numpy() for name, part in parameters.items()}


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"momentum": 0.9},
        {"weight_decay": 0.1},
        {"optimizer": "adam"},
        {"optimizer": "adam", "weight_decay": 0.1, "clip_norm": 1.5, "proximal_mu": 0.3},
        {"momentum": 0.9, "weight_decay": 0.1, "clip_norm": 1.5, "proximal_mu": 0.3},
        {"clip_norm": 1e9},
    ],
    ids=str,
)
def test_every_step_is_that_of_torch(changed: dict[str, Any]) -> None:
    # Gradients of 41 standard normal numbers have a norm of about 6.4, so that 1.5 clips every one of them.
    ended, due = ours(plan(**changed)), torchs(plan(**changed))
    for name, array in due.items():
        assert ended[name].shape == array.shape
        np.testing.assert_allclose(ended[name], array, rtol=0, atol=1e-6)


def test_a_clipped_step_is_as_long_as_the_plan_allows() -> None:
    parameters = start()
    before = copied(parameters)
    LocalOptimiser(parameters, plan(learning_rate=1.0, clip_norm=0.5)).step(slopes(0))
    moved = sum(float(np.sum((parameters[name] - before[name]) ** 2)) for name in before) ** 0.5
    assert moved == pytest.approx(0.5, abs=1e-5)


def test_a_parameter_without_a_gradient_stays() -> None:
    parameters = start()
    LocalOptimiser(parameters, plan(optimizer="adam", weight_decay=0.1)).step({"bias": slopes(0)["bias"]})
    np.testing.assert_array_equal(parameters["weight"], start()["weight"])
    assert not np.array_equal(parameters["bias"], start()["bias"])


def test_a_gradient_that_is_not_finite_shows_in_the_parameters() -> None:
    # Whoever trains names the tensor: a clip that hid it would pass a broken update on.
    parameters = start()
    broken = slopes(0)
    broken["bias"][0] = np.inf
    LocalOptimiser(parameters, plan(clip_norm=1.0)).step(broken)
    assert not np.isfinite(parameters["bias"]).all()
