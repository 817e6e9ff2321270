"""Parts of a device that tests put together: an operator, tasks, data, and a Flower server in memory."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import graph_files
import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, Metadata, RecordDict
from other_user import folder_for_all

from device_agent.journal import Journal
from device_agent.participation import Device
from device_agent.settings import DataSource, DeviceSettings
from models.datasets import Dataset
from trellis.descriptor import TaskDescriptor, parse_mapping
from trellis.envelope import Keyring, sign
from trellis.errors import Refused, Unavailable
from trellis.flower.link_loop import Pace
from trellis.signing_key import SigningKey
from trellis.tensors import pack_arrays

NODE_ID = 4711
ADDRESS = "127.0.0.1:8000"


class FlowerInMemory:
    """A Flower server of one node, which makes links to itself: what `FlowerLink` promises, without HTTP."""

    def __init__(self) -> None:
        self.down = False
        self.refuse_replies = False
        self.replies: dict[str, Message] = {}
        self.pulls: list[tuple[float, bool]] = []  # when, and whether it found a message
        self.deactivated: list[bool] = []
        self.threads: set[str] = set()
        self.pushing: Callable[[str], None] = lambda _: None
        self.coming: Callable[[], None] | None = None  # called while a message comes that takes long
        self.found_nothing: Callable[[], None] = lambda: None  # called in the pull that did
        self._waiting: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._unanswered: dict[str, Message] = {}
        self._number = 0
        self._news = threading.Condition()

    def __call__(self, address: str, folder: Path) -> LinkInMemory:
        assert address == ADDRESS
        return LinkInMemory(self)

    def send(self, kind: str, config: dict[str, Any], arrays: dict[str, np.ndarray] | None = None) -> str:
        """Queue a message for the node and return its ID."""
        self._number += 1
        content = RecordDict({"config": ConfigRecord(config)})
        if arrays is not None:
            content["arrays"] = pack_arrays(arrays)
        metadata = Metadata(7, f"m{self._number}", 1, NODE_ID, "", "", time.time(), 3600.0, kind)
        message = Message(content=content, metadata=metadata)
        self._waiting.put(message)
        return f"m{self._number}"

    def reply(self, message_id: str, timeout_s: float = 30.0) -> Message:
        """Return the reply to a message once it has come."""
        with self._news:
            assert self._news.wait_for(lambda: message_id in self.replies, timeout_s), (
                f"no reply to {message_id}"
            )
            return self.replies[message_id]


class LinkInMemory:
    """One process's link; a new one finds what its predecessor left unanswered."""

    def __init__(self, server: FlowerInMemory) -> None:
        self._server = server
        self._again: Iterator[Message] = iter(())

    @property
    def in_hand(self) -> list[str]:
        return list(self._server._unanswered)

    def connect(self) -> int:
        self._answering()
        self._again = iter(list(self._server._unanswered.values()))
        return NODE_ID

    def pull(self, asked: Callable[[], None]) -> Message | None:
        self._answering()
        server = self._server
        for message in self._again:
            return message
        try:
            message = server._waiting.get_nowait()
        except queue.Empty:
            server.pulls.append((time.monotonic(), False))
            server.found_nothing()
            return None
        server.pulls.append((time.monotonic(), True))
        server._unanswered[message.metadata.message_id] = message
        if server.coming is not None:
            asked()
            server.coming()
        return message

    def push(self, reply: Message) -> str:
        answered = reply.metadata.reply_to_message_id
        self._server.pushing(answered)
        self._answering()
        refused = self._server.refuse_replies  # before anybody can see that it came
        self._server._unanswered.pop(answered, None)
        if refused:
            raise Refused("reply", f"the run of {answered} is over")
        with self._server._news:
            self._server.replies[answered] = reply
            self._server._news.notify_all()
        return answered

    def close(self, *, deactivate: bool) -> None:
        self._server.deactivated.append(deactivate)

    def _answering(self) -> None:
        self._server.threads.add(threading.current_thread().name)
        if self._server.down:
            raise Unavailable(f"{ADDRESS} does not answer")


@pytest.fixture
def flower() -> FlowerInMemory:
    return FlowerInMemory()


@pytest.fixture(scope="session")
def operator() -> SigningKey:
    return SigningKey.generate()


@pytest.fixture
def make_task() -> Callable[..., TaskDescriptor]:
    def make(**changes: Any) -> TaskDescriptor:
        now = datetime.now(UTC).replace(microsecond=0)
        task: dict[str, Any] = {
            "task": "blobs",
            "regions": ["eu-1"],
            "server": {"address": ADDRESS, "tls": False},
            "model": {"name": "softmax"},
            "data": {"name": "blobs", "shape": [4], "classes": 3, "min_samples": 10},
            "train": {"rounds": 3, "local_epochs": 2, "batch_size": 8, "learning_rate": 0.1, "seed": 5},
            "issued_at": (now - timedelta(minutes=1)).isoformat(),
            "expires_at": (now + timedelta(hours=1)).isoformat(),
        }
        return parse_mapping(task | changes)

    return make


@pytest.fixture
def signed(operator: SigningKey) -> Callable[..., bytes]:
    def signed(task: TaskDescriptor, key: SigningKey = operator) -> bytes:
        return sign(task.to_json(), key).to_bytes()

    return signed


@pytest.fixture(scope="session")
def blobs() -> Dataset:
    """64 samples of three classes, (4,) float32, that a linear model tells apart."""
    rng = np.random.default_rng(3)
    y = np.arange(64, dtype=np.int64) % 3
    x = (rng.normal(size=(64, 4)) * 0.3 + np.eye(3, 4)[y]).astype(np.float32)
    return Dataset("blobs", x, y, classes=3)


@pytest.fixture
def settings(tmp_path: Path, operator: SigningKey) -> DeviceSettings:
    return DeviceSettings(
        name="cam-7",
        region="eu-1",
        broker="mqtt://127.0.0.1:1883",
        servers=(ADDRESS,),
        data=DataSource("blobs"),
        keyring=Keyring([operator.public]),
        tls=None,
        state=tmp_path / "state",
    )


@pytest.fixture
def journal(settings: DeviceSettings) -> Iterator[Journal]:
    with Journal.open(settings.state / "journal.sqlite", device=settings.principal) as journal:
        yield journal


@pytest.fixture
def device(settings: DeviceSettings, blobs: Dataset, journal: Journal, flower: FlowerInMemory) -> Device:
    pace = Pace(idle_s=60.0, empty_s=0.2, recheck_s=0.4, retry_s=0.05, retry_most_s=0.2)
    return Device(settings, blobs, journal, flower, pace)


@pytest.fixture
def content(tmp_path: Path) -> bytes:
    """A training artefact of a model that no registry here knows."""
    (tmp_path / "made").mkdir()
    return graph_files.write_onnx(tmp_path / "made" / "tiny.onnx").read_bytes()


@pytest.fixture
def tiny_device(device: Device) -> Device:
    """A device that trains that artefact."""
    rng = np.random.default_rng(3)
    y = np.arange(40, dtype=np.int64) % 2
    x = (rng.normal(size=(40, 3)) * 0.3 + np.eye(2, 3)[y]).astype(np.float32)
    settings = replace(device.settings, backend="onnx")
    return replace(device, data=Dataset("blobs", x, y, classes=2), settings=settings)


@pytest.fixture
def folder_of_all() -> Iterator[Path]:
    with folder_for_all() as folder:
        yield folder
