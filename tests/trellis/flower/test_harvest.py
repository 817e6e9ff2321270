"""What a strategy is given of a phase's replies."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg

from trellis.errors import TensorError
from trellis.flower.harvest import Harvest
from trellis.flower.updates import Update
from trellis.tensors import Arrays


def asked() -> Message:
    return Message(RecordDict({"config": ConfigRecord({})}), 7, "train")


def reply() -> Message:
    return Message(RecordDict({"m": MetricRecord({})}), reply_to=asked())


def update(value: float, samples: int, **metrics: float) -> Update:
    arrays: Arrays = {"w": np.full(2, value, np.float32)}
    return Update({"arrays": arrays}, {"num-examples": samples, **metrics}, {}, samples, 8)


def filled(*, fold: bool) -> Harvest:
    harvest = Harvest(fold=fold)
    harvest.add("eu-1/b", reply(), update(2.0, 300, train_loss=1.0, extra=5.0))
    harvest.add("eu-1/a", reply(), update(1.0, 100, train_loss=2.0))
    return harvest


@pytest.mark.parametrize("fold", [False, True])
def test_fedavg_takes_replies_that_differ_in_their_metrics(fold: bool) -> None:
    arrays, metrics = FedAvg().aggregate_train(1, filled(fold=fold).for_strategy())
    assert arrays is not None
    assert metrics is not None
    # (100 * 1 + 300 * 2) / 400, and (100 * 2 + 300 * 1) / 400
    assert arrays["w"].numpy().tolist() == [1.75, 1.75]
    assert dict(metrics) == {"train_loss": 1.25}


def test_a_list_is_in_the_order_of_the_devices_names() -> None:
    replies = filled(fold=False).for_strategy()
    assert [m.content.array_records["arrays"]["w"].numpy()[0] for m in replies] == [1.0, 2.0]


def test_evaluations_that_differ_in_their_metrics_are_averaged_over_what_they_share() -> None:
    harvest = Harvest(fold=False)
    harvest.add("a", reply(), Update({}, {"num-examples": 1, "eval_loss": 1.0, "f1": 0.5}, {}, 1, 0))
    harvest.add("b", reply(), Update({}, {"num-examples": 3, "eval_loss": 3.0}, {}, 3, 0))
    metrics = FedAvg().aggregate_evaluate(1, harvest.for_strategy())
    assert metrics is not None
    assert dict(metrics) == {"eval_loss": 2.5}


def test_folding_refuses_two_records_of_tensors_before_it_takes_anything_in() -> None:
    harvest = Harvest(fold=True)
    arrays: Arrays = {"w": np.zeros(2, np.float32)}
    with pytest.raises(TensorError, match="holds 2 records of tensors"):
        harvest.check(Update({"arrays": arrays, "more": arrays}, {"num-examples": 1}, {}, 1, 0))
    assert harvest.for_strategy() == []


@pytest.mark.parametrize("fold", [False, True])
@pytest.mark.parametrize(
    ("metrics", "fault"), [({}, "has 'train_loss' None"), ({"train_loss": -0.1}, "has 'train_loss' -0.1")]
)
def test_an_update_without_the_loss_that_the_strategy_reads_is_not_taken_in(
    fold: bool, metrics: dict[str, float], fault: str
) -> None:
    harvest = Harvest(fold=fold, due=("train_loss",))
    harvest.check(update(1.0, 1, train_loss=0.0))
    with pytest.raises(TensorError, match=f"{fault}, due is a number from 0"):
        harvest.check(update(1.0, 1, **metrics))


def test_nothing_came() -> None:
    assert Harvest(fold=False).for_strategy() == []


@pytest.mark.parametrize(("fold", "held"), [(True, 4), (False, 41)])
def test_memory_is_flat_in_the_number_of_updates_that_are_folded(fold: bool, held: int) -> None:
    one = 100_000  # elements of float32: the sums in float64 are twice as large
    harvest = Harvest(fold=fold)
    tracemalloc.start()
    try:
        for number in range(40):
            arrays: Arrays = {"w": np.full(one, number, np.float32)}
            harvest.add(f"d{number}", reply(), Update({"arrays": arrays}, {"num-examples": 1}, {}, 1, 8))
            del arrays
        peak = tracemalloc.get_traced_memory()[1] / (4 * one)
    finally:
        tracemalloc.stop()
    assert 0.9 * (held - 1) < peak < held + 2, f"{peak:.1f} updates were in memory at once"
