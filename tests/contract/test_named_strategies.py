"""Every strategy that a task may name, run as a tier runs it: on a real SuperLink, with real links."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
from flower_fleet import Device, adding, fleet_of
from flower_parts import scripted_app

from device_agent.client_app import Membership, build_client_app
from device_agent.trainer import Request, Trainer
from device_agent.turns import Turns
from models.backends import open_backend
from models.datasets import Dataset
from models.datasets import load as load_data
from trellis.descriptor import TaskDescriptor, parse_mapping
from trellis.flower.answers import Answer, AnswerKey
from trellis.flower.superlink import SuperLink
from trellis.tensors import Arrays
from trellis.tier.strategy_table import STRATEGIES

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]

LEARNING_RATE = 0.1


def task(strategy: str, participants: dict[str, Any], **params: Any) -> TaskDescriptor:
    return parse_mapping(
        {
            "task": "t",
            "regions": ["eu-1"],
            "server": {"address": "127.0.0.1:8000"},
            "model": {"name": "softmax"},
            "data": {"name": "digits", "shape": [1, 8, 8], "classes": 10},
            "train": {"rounds": 2, "learning_rate": LEARNING_RATE, "seed": 5},
            "strategy": {"name": strategy, "params": params},
            "participants": {"quorum": 1.0, "deadline_s": 80, **participants},
        }
    )


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def superlink(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[SuperLink]:
    async with SuperLink(folder=tmp_path_factory.mktemp("superlink")) as running:
        yield running


class Rounds:
    """Runs tasks on one ServerApp and one fleet, one after the other."""

    def __init__(self, app: Any, view: Path, folder: Path) -> None:
        self._app, self._view, self._folder = app, view, folder

    async def __call__(self, descriptor: TaskDescriptor, model: Arrays) -> tuple[Arrays, dict[str, Any]]:
        before, after = self._folder / "model.npz", self._folder / "trained.npz"
        np.savez(before, **model)  # type: ignore[arg-type]  # numpy's stub means its own options
        told = await self._app(
            "task", task=descriptor.to_json(), view=str(self._view), model=str(before), trained=str(after)
        )
        with np.load(after) as file:
            return {name: file[name] for name in file.files}, told


@pytest.mark.long
async def test_each_runs_two_rounds_over_seven_devices(superlink: SuperLink, tmp_path: Path) -> None:
    # Six agree on a step, by and large; the seventh is far off, and has as many samples as all others.
    steps = [1.0, 1.1, 1.2, 0.9, 0.8, 1.0, 1000.0]
    devices = [Device(f"d{n}", 60 if n == 6 else 10, adding(step)) for n, step in enumerate(steps)]
    # Off their alphabet, of one shape: a strategy that mixed them up would not be found out by shapes.
    model: Arrays = {"w": np.zeros((2, 2), np.float32), "b": np.full((2, 2), 5, np.float32)}
    moved: dict[str, float] = {}
    with fleet_of(devices, superlink.address, tmp_path) as fleet:
        async with scripted_app(superlink, tmp_path) as app:
            run = Rounds(app, fleet.path, tmp_path)
            for name in STRATEGIES:
                arrays, told = await run(task(name, {"minimum": 7}), model)
                assert {one["outcome"] for one in told["outcomes"]} == {"replied"}, name
                assert len(told["outcomes"]) == 7
                assert [(key, array.dtype) for key, array in arrays.items()] == [("w", "f4"), ("b", "f4")]
                np.testing.assert_allclose(arrays["b"], arrays["w"] + 5, rtol=1e-5)
                moved[name] = float(arrays["w"][0, 0])
    mean = (10 * sum(steps[:6]) + 60 * 1000.0) / 120  # 500.5 a round
    assert moved["fedavg"] == pytest.approx(2 * mean)
    assert moved["fedprox"] == pytest.approx(2 * mean)
    assert moved["fedavgm"] == pytest.approx(mean + (0.9 * mean + mean), rel=1e-5)
    for adaptive in ("fedadam", "fedyogi", "fedadagrad"):
        assert 0 < moved[adaptive] < 2, f"{adaptive}: an optimiser's step is about its rate, {moved}"
    for robust in ("fedmedian", "fedtrimmedavg", "krum", "multikrum", "bulyan"):
        assert 1.6 <= moved[robust] <= 2.4, f"{robust} let the seventh in: {moved}"
    # All losses are 1: a round's step is Σ Δw / Σ (q ||Δw||² + L) with L = 10 and ||Δw||² = 8 (10 step)².
    step = sum(10 * s for s in steps) / sum(0.1 * 800 * s**2 + 10 for s in steps)
    assert moved["qfedavg"] == pytest.approx(2 * step, rel=1e-4)


class Forgetful:
    """A journal that keeps nothing."""

    def answer(self, key: AnswerKey) -> Answer | None:
        return None

    def write_answer(self, key: AnswerKey, answer: Answer) -> None: ...


class Silent:
    """An observer that tells nobody."""

    def checked_in(self, node_id: int, nonce: str) -> None: ...

    def asked(self) -> None: ...

    def working(self, phase: Any, round_number: int) -> None: ...

    def step(self, round_number: int, report: Any) -> None: ...


def trainer(descriptor: TaskDescriptor, data: Dataset, name: str) -> Trainer:
    return Trainer.open(descriptor, data, backend="torch", region="eu-1", device=name, threads=1)


def agent(descriptor: TaskDescriptor, data: Dataset, name: str) -> Device:
    """A device that answers with the agent's own ClientApp."""
    app = build_client_app(
        Membership("t", 1, "digest", "central", "eu-1", name),
        trainer(descriptor, data, name),
        answers=Forgetful(),
        observer=Silent(),
        turns=Turns(),
        should_stop=lambda: False,
    )
    return Device(name, len(data), adding(0.0), app=app)


def q_fedavg(descriptor: TaskDescriptor, parts: dict[str, Dataset], model: Arrays, q: float) -> Arrays:
    """What Algorithm 2 of Li et al. 2020 (q-FFL) says, in float64, of the same devices' training."""
    backend = open_backend("torch", "softmax", shape=(1, 8, 8), classes=10, seed=5)
    for number in (1, 2):
        steps, weight = {key: np.zeros(array.shape) for key, array in model.items()}, 0.0
        for name, data in parts.items():
            loss = backend.evaluate(model, data).loss
            trained = trainer(descriptor, data, name).train(model, Request(number)).arrays
            delta = {
                key: np.subtract(model[key], trained[key], dtype=np.float64) / LEARNING_RATE for key in model
            }
            norm = sum(float(np.sum(part**2)) for part in delta.values())
            steps = {key: steps[key] + loss**q * part for key, part in delta.items()}
            weight += q * loss ** (q - 1) * norm + loss**q / LEARNING_RATE
        model = {key: (model[key] - steps[key] / weight).astype(np.float32) for key in model}
    return model


async def test_qfedavg_weighs_devices_by_their_loss_of_the_rounds_model(
    superlink: SuperLink, tmp_path: Path
) -> None:
    descriptor = task("qfedavg", {"minimum": 3}, q=2)
    digits = load_data("digits", split="train")
    parts = {
        "a": digits.take(np.flatnonzero(digits.y < 3)[:200]),
        "b": digits.take(np.flatnonzero(digits.y > 6)[:40]),
        "c": digits.take(np.flatnonzero(digits.y == 5)[:90]),
    }
    model = open_backend("torch", "softmax", shape=(1, 8, 8), classes=10, seed=5).initial()
    devices = [agent(descriptor, data, name) for name, data in parts.items()]
    with fleet_of(devices, superlink.address, tmp_path) as fleet:
        async with scripted_app(superlink, tmp_path) as app:
            arrays, told = await Rounds(app, fleet.path, tmp_path)(descriptor, model)
    due = q_fedavg(descriptor, parts, model, q=2)
    for key, array in due.items():
        np.testing.assert_allclose(arrays[key], array, rtol=1e-4, atol=1e-6)
    unweighted = q_fedavg(descriptor, parts, model, q=0)
    assert max(float(np.abs(arrays[key] - unweighted[key]).max()) for key in due) > 1e-2
    # Each round's loss is of the model that it began with: the first is the initial model's.
    assert told["metrics"][0]["train_loss"] > told["metrics"][0]["final_loss"]
