"""The mini-batches of a pass: none is a single sample where that can be, for batch normalisation's sake."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from graph_files import manifest
from torch import nn

from models.backends import TrainPlan
from models.backends.graph import Array, GraphBackend
from models.backends.loop import _shuffled
from models.backends.torch import open_model
from models.datasets import Dataset
from models.manifest import Program, TensorEntry
from models.registry import ModelSpec
from trellis.errors import TrainingFailed


@pytest.mark.parametrize(
    ("samples", "batch_size", "due"),
    [
        (9, 4, [4, 3, 2]),
        (5, 4, [3, 2]),
        (4, 3, [2, 2]),
        (10, 4, [4, 4, 2]),
        (8, 4, [4, 4]),
        (3, 4, [3]),
        (1, 4, [1]),
        (3, 2, [2, 1]),  # two, and two out of one, there are not
        (3, 1, [1, 1, 1]),
    ],
)
def test_a_pass_takes_every_sample_once_and_none_alone_where_that_can_be(
    samples: int, batch_size: int, due: list[int]
) -> None:
    batches = list(_shuffled(samples, batch_size, 2 * len(due), np.random.default_rng(3)))
    assert [len(batch) for batch in batches] == due * 2
    for taken in (batches[: len(due)], batches[len(due) :]):
        assert sorted(np.concatenate(taken)) == list(range(samples))


def _data(samples: int) -> Dataset:
    rng = np.random.default_rng(7)
    return Dataset("toy", rng.normal(size=(samples, 3)).astype(np.float32), np.arange(samples) % 2, 2)


def test_batch_normalisation_trains_where_a_pass_leaves_one_sample() -> None:
    def build(*_: Any) -> nn.Module:
        return nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 2))

    backend = open_model(ModelSpec("normalised", "", build), shape=(3,), classes=2, seed=0)
    plan = TrainPlan(epochs=2, steps=None, batch_size=4, learning_rate=0.1)
    result = backend.train(backend.initial(), _data(9), plan, np.random.default_rng(1))
    assert (result.steps, result.arrays["1.num_batches_tracked"]) == (6, 6)


class Lonely:
    """Gives what an exported graph makes of the variance of one sample."""

    name = "onnx"

    def run(self, program: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        spread = np.float32(np.nan if len(inputs["x"]) == 1 else 1)
        shapes = {"loss": (), "correct": (), "gradient:fc.weight": (2, 3), "gradient:fc.bias": (2,)}
        found = {role: np.zeros(shape, np.float32) for role, shape in shapes.items()}
        return {**found, "buffer:norm.variance": np.full(2, spread)}


def test_statistics_that_one_sample_does_not_give_are_told_as_such() -> None:
    plain = manifest("onnx")
    statistics = TensorEntry(name="norm.variance", shape=(2,), dtype="float32", kind="buffer")
    train = plain.programs["train"]
    outputs = {**train.outputs, "buffer:norm.variance": "variance"}
    programs = {**plain.programs, "train": Program(inputs=train.inputs, outputs=outputs)}
    changed = plain.model_copy(update={"tensors": (*plain.tensors, statistics), "programs": programs})
    backend = GraphBackend(changed, Lonely())
    arrays = {entry.name: np.zeros(entry.shape, np.float32) for entry in changed.tensors}
    plan = TrainPlan(epochs=1, steps=None, batch_size=2, learning_rate=0.1)
    assert backend.train(arrays, _data(4), plan, np.random.default_rng(1)).steps == 2
    with pytest.raises(TrainingFailed) as caught:
        backend.train(arrays, _data(5), plan, np.random.default_rng(1))
    assert str(caught.value) == (
        "model 'tiny' has statistics of its batches ('norm.variance'), which a batch of one sample does not "
        "give: 2 samples and a batch_size of 3, or more, are due"
    )
