"""The README's function that runs any Flower strategy, run: two devices at the other end of Flower's grid."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedMedian, Result, Strategy
from flwr.supercore.task_identity import TaskIdentity
from pages import block, read

from trellis.descriptor import parse_mapping
from trellis.flower.backchannel import FleetDevice, FleetView
from trellis.flower.parcels import unwrap
from trellis.payloads import ExecutionState, Round
from trellis.tensors import pack_arrays, unpack_arrays

TASK = {
    "task": "t",
    "regions": ["eu-1"],
    "server": {"address": "127.0.0.1:8000", "tls": False},
    "model": {"name": "softmax"},
    "data": {"name": "digits", "shape": [1, 8, 8], "classes": 10},
    "train": {"rounds": 2, "learning_rate": 0.1},
}


class Wire(Grid):
    """Flower's grid with two devices at its other end, that answer at once.

    Both are checked in as Trellis's devices are: by the nonce of the query. Training adds a number.
    """

    steps: ClassVar = {11: 1.0, 12: 3.0}  # node → what its training adds
    samples: ClassVar = {11: 100, 12: 300}

    def __init__(self) -> None:
        self.devices = {
            node: FleetDevice(
                region="eu-1", device=f"d{node}", online=True, state=ExecutionState.IN_PROGRESS, node_id=node
            )
            for node in self.steps
        }
        self.version = 0
        self.asked: list[str] = []
        self._replies: dict[str, Message] = {}

    def wait(self, after: int, timeout_s: float) -> FleetView:
        return FleetView(version=self.version, devices=tuple(self.devices.values()))

    def announce(self, standing: Round) -> None:
        pass

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        for message in messages:
            message.metadata.__dict__["_message_id"] = f"m{len(self._replies)}"
            self._answer(message)
            yield message.metadata.message_id

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [self._replies.pop(one) for one in message_ids if one in self._replies]

    def _answer(self, message: Message) -> None:
        node, kind = message.metadata.dst_node_id, message.metadata.message_type
        asked = unwrap(message.content)  # as a device's link does
        device, config = self.devices[node], asked.config_records["config"]
        self.asked.append(kind)
        seen: dict[str, object] = {"message_id": message.metadata.message_id}
        if kind == "query":
            own: dict[str, str | int] = {
                "region": device.region,
                "device": device.device,
                "samples": self.samples[node],
            }
            content = RecordDict({"config": ConfigRecord({"nonce": config["nonce"], **own})})
            seen["nonce"] = config["nonce"]
        elif kind == "evaluate":
            content = RecordDict({"metrics": MetricRecord({"num-examples": 1, "eval_loss": 1.0})})
        else:
            trained = {
                k: (v.astype(np.float64) + self.steps[node]).astype(np.float32)
                for k, v in unpack_arrays(asked.array_records["arrays"]).items()
            }
            metrics = MetricRecord(
                {"num-examples": self.samples[node], "train_loss": float(str(config["round"]))}
            )
            content = RecordDict({"arrays": pack_arrays(trained), "metrics": metrics})
        self._replies[message.metadata.message_id] = Message(content, reply_to=message)
        self.devices[node] = device.model_copy(update=seen)
        self.version += 1

    def set_run(self, run: object) -> None: ...

    @property
    def run(self) -> Any: ...

    def create_message(self, *_: Any, **__: Any) -> Any: ...

    def get_node_ids(self) -> Any: ...

    def send_and_receive(self, *_: Any, **__: Any) -> Any: ...


@pytest.fixture
def train(tmp_path: Path) -> Callable[..., Result]:
    """The README's function."""
    file = tmp_path / "any_strategy.py"
    file.write_text(block(read("README.md"), "file: any_strategy.py"), "utf-8")
    spec = importlib.util.spec_from_file_location("any_strategy", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: Callable[..., Result] = module.train
    return found


@pytest.fixture
def in_a_serverapp(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower makes messages only in a process that it has given a task."""
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


class Mine(FedMedian):
    """A user's own: it takes the largest."""

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
        found: Sequence[Message] = list(replies)
        best = max(found, key=lambda reply: float(reply.content.array_records["arrays"]["w"].numpy().sum()))
        return best.content.array_records["arrays"], MetricRecord({"devices": len(found)})


@pytest.mark.parametrize(
    ("strategy", "due"),
    [
        (FedMedian(min_train_nodes=1, min_available_nodes=2), 4.0),  # 2 rounds of median(1, 3) = 2
        (Mine(min_train_nodes=1, min_available_nodes=2), 6.0),  # 2 rounds of max(1, 3) = 3
    ],
    ids=["FedMedian", "own"],
)
@pytest.mark.usefixtures("in_a_serverapp")
def test_any_strategy_trains_with_the_readmes_function(
    strategy: Strategy, due: float, train: Callable[..., Result]
) -> None:
    task = parse_mapping(TASK)
    wire = Wire()
    start = ArrayRecord({"w": Array(np.zeros(4, np.float32))})
    result = train(wire, wire, task, strategy, start)
    np.testing.assert_allclose(result.arrays["w"].numpy(), np.full(4, due))
    assert wire.asked == ["query"] * 2 + (["train"] * 2 + ["evaluate"] * 2) * 2
    # Each device's loss is the round it was told, which Flower's strategies don't tell.
    assert result.train_metrics_clientapp[2]["train_loss" if type(strategy) is FedMedian else "devices"] == 2
