"""How much a device trains in a round, and what the result follows from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from device_agent.trainer import Request, Trainer
from models.backends import StepReport, TrainPlan, open_backend
from models.datasets import Dataset
from trellis.descriptor import TaskDescriptor
from trellis.seeds import generator

Make = Callable[..., TaskDescriptor]
STEPS = {"rounds": 3, "local_steps": 11, "batch_size": 8, "learning_rate": 0.1, "seed": 5}


def opened(task: TaskDescriptor, data: Dataset, device: str = "cam-7") -> Trainer:
    return Trainer.open(task, data, backend="torch", region="eu-1", device=device, threads=1)


def initial() -> dict[str, Any]:
    return open_backend("torch", "softmax", shape=(4,), classes=3, seed=5).initial()


def test_a_round_of_steps_is_that_many_mini_batches_over_the_data_again_and_again(
    make_task: Make, blobs: Dataset
) -> None:
    reports: list[StepReport] = []
    opened(make_task(train=STEPS), blobs).train(initial(), Request(2), on_step=reports.append)
    # 64 samples in batches of 8: a pass has 8 steps, so that 11 are one pass and the first 3 of a second.
    assert [(r.step, r.steps) for r in reports] == [(step, 11) for step in range(1, 12)]
    assert {(r.epoch, r.epochs) for r in reports} == {(1, 2), (2, 2)}
    assert reports[-1].samples == 88


def test_the_weight_of_a_round_of_steps_is_the_devices_number_of_samples(
    make_task: Make, blobs: Dataset
) -> None:
    trained = opened(make_task(train=STEPS), blobs).train(initial(), Request(1))
    assert trained.metrics["num-examples"] == 64


def test_a_round_of_steps_follows_from_seed_region_device_and_round_alone(
    make_task: Make, blobs: Dataset
) -> None:
    task = make_task(train=STEPS)
    trainer = opened(task, blobs)
    trainer.train(initial(), Request(1))  # what was trained before leaves no trace
    arrays = trainer.train(initial(), Request(2)).arrays
    due = open_backend("torch", "softmax", shape=(4,), classes=3, seed=5).train(
        initial(),
        trainer._data,
        TrainPlan(epochs=None, steps=11, batch_size=8, learning_rate=0.1),
        generator(5, "train", "eu-1", "cam-7", 2),
    )
    for name, array in due.arrays.items():
        np.testing.assert_array_equal(arrays[name], array)
    others = [
        trainer.train(initial(), Request(3)).arrays,
        opened(task, blobs, "cam-8").train(initial(), Request(2)).arrays,
    ]
    assert all(any((other[name] != arrays[name]).any() for name in arrays) for other in others)
