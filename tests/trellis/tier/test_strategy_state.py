"""What a strategy carries from round to round survives a checkpoint: later rounds come out the same."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity
from numpy.typing import NDArray

from trellis.descriptor import TaskDescriptor, parse_mapping
from trellis.flower.packing import packed
from trellis.seeds import generator
from trellis.tensors import Arrays, unpack
from trellis.tier.checkpoints import Checkpoint, Checkpoints
from trellis.tier.round import _like
from trellis.tier.strategies import build_strategy
from trellis.tier.strategy_state import restore_strategy, strategy_state
from trellis.tier.strategy_table import STRATEGIES

MEMBERS = 7
ROUNDS = 4


@pytest.fixture(autouse=True)
def in_a_serverapp(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower makes messages only in a process that it has given a task."""
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)
    gc.freeze()  # as where an app starts: Flower collects garbage with every reply


class Seven(Grid):
    """A grid of seven nodes, of which a strategy asks nothing but who they are."""

    def get_node_ids(self) -> list[int]:
        return list(range(1, MEMBERS + 1))

    def set_run(self, run: object) -> None: ...

    @property
    def run(self) -> Any: ...

    def create_message(self, *_: Any, **__: Any) -> Any: ...

    def push_messages(self, *_: Any, **__: Any) -> Any: ...

    def pull_messages(self, *_: Any, **__: Any) -> Any: ...

    def send_and_receive(self, *_: Any, **__: Any) -> Any: ...


def task(name: str) -> TaskDescriptor:
    return parse_mapping(
        {
            "task": "t",
            "regions": ["eu-1"],
            "server": {"address": "127.0.0.1:8000"},
            "model": {"name": "lenet5"},
            "data": {"name": "digits", "shape": [1, 8, 8], "classes": 10},
            "train": {"rounds": ROUNDS, "learning_rate": 0.1},
            "strategy": {"name": name},
            "participants": {"minimum": MEMBERS, "quorum": 1.0},
        }
    )


def initial(name: str) -> Arrays:
    # Two tensors of one shape, in another order than the alphabet's: mixed up, nothing would complain.
    arrays: Arrays = {
        "z": np.arange(6, dtype=np.float32).reshape(2, 3),
        "a": -np.ones((2, 3), np.float32),
    }
    return arrays if STRATEGIES[name].kind == "fair" else {**arrays, "counter": np.array(3, np.int64)}


def stepped(array: NDArray[np.generic], rng: np.random.Generator) -> NDArray[np.generic]:
    step = 5 * rng.normal(size=array.shape)
    return np.asarray(np.add(array, step, dtype=np.float64)).astype(array.dtype)


def replies(messages: Iterator[Message], number: int) -> Iterator[Message]:
    # By member, as the grid hands them to a strategy; Flower itself draws nodes in a random order.
    for message in sorted(packed(messages, task="t"), key=lambda message: message.metadata.dst_node_id):
        node = message.metadata.dst_node_id
        rng = generator(5, "update", node, number)
        sent = unpack(message.content.array_records["arrays"])
        trained = {name: Array(stepped(array.numpy(), rng)) for name, array in sent.items()}
        metrics = MetricRecord({"num-examples": 10 * node, "train_loss": float(rng.uniform(0.5, 2))})
        content = RecordDict({"arrays": ArrayRecord(trained), "metrics": metrics})
        yield Message(content, reply_to=message)


def rounds(name: str, folder: Path, first: int, last: int) -> Arrays:
    """Run rounds as a process of its own would: from the checkpoint in `folder`, and with one after each."""
    built, entry = build_strategy(task(name))
    strategy: Any = built
    checkpoints = Checkpoints(folder)
    found = checkpoints.latest()
    arrays = initial(name) if found is None else found.arrays
    if found is not None:
        assert found.round == first - 1
        restore_strategy(strategy, found.strategy, entry.state)
    for number in range(first, last + 1):
        record = ArrayRecord({key: Array(np.asarray(array)) for key, array in arrays.items()})
        messages = strategy.configure_train(number, record, ConfigRecord({"round": number}), Seven())
        new, _ = strategy.aggregate_train(number, list(replies(messages, number)))
        arrays = _like(new, arrays, number)
        checkpoints.write(Checkpoint(number, arrays, strategy_state(strategy, entry.state)))
    return arrays


@pytest.mark.parametrize("name", sorted(STRATEGIES))
@pytest.mark.parametrize("crash_after", [1, 2])
def test_a_run_that_goes_on_from_a_checkpoint_ends_as_one_without_a_crash(
    tmp_path: Path, name: str, crash_after: int
) -> None:
    whole = rounds(name, tmp_path / "whole", 1, ROUNDS)
    rounds(name, tmp_path / "cut", 1, crash_after)
    resumed = rounds(name, tmp_path / "cut", crash_after + 1, ROUNDS)
    assert list(resumed) == list(whole) == list(initial(name))
    for key, array in whole.items():
        assert array.dtype == initial(name)[key].dtype
        np.testing.assert_array_equal(resumed[key], array)
    assert not np.array_equal(whole["z"], initial(name)["z"])


@pytest.mark.parametrize("name", sorted(name for name, entry in STRATEGIES.items() if entry.state))
def test_without_its_state_a_run_would_end_otherwise(tmp_path: Path, name: str) -> None:
    """So the test above sees what is lost."""
    whole = rounds(name, tmp_path / "whole", 1, ROUNDS)
    rounds(name, tmp_path / "cut", 1, 2)
    checkpoints = Checkpoints(tmp_path / "cut")
    found = checkpoints.latest()
    assert found is not None
    assert set(found.strategy) == set(STRATEGIES[name].state)
    checkpoints.write(Checkpoint(2, found.arrays))
    resumed = rounds(name, tmp_path / "cut", 3, ROUNDS)
    assert not all(np.array_equal(resumed[key], whole[key]) for key in whole)


def test_state_that_was_not_set_is_left_out_and_unset_again() -> None:
    built, entry = build_strategy(task("fedavgm"))
    strategy: Any = built
    before = strategy_state(strategy, entry.state)
    assert before == {}
    strategy.current_arrays = ArrayRecord({"w": Array(np.ones(2))})
    strategy.momentum_vector = [np.zeros(2)] * 12
    state = strategy_state(strategy, entry.state)
    assert list(state["momentum_vector"])[9:] == ["000009", "000010", "000011"]
    restore_strategy(strategy, before, entry.state)
    assert strategy.current_arrays is strategy.momentum_vector is None
