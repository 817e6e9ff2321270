"""What the server exports ahead: for devices that have said what they train with, whichever comes first."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, cast

import pytest

from central_server.artefacts import TaskArtefacts
from central_server.exporting import Exporter, Wanted
from central_server.tasks import Tasks
from trellis.artefacts.offer import NotYet
from trellis.descriptor import TaskDescriptor, parse_mapping
from trellis.errors import Refused
from trellis.mqtt.memory import MemoryBroker
from trellis.payloads import Info
from trellis.topics import Topics

TOPICS = Topics()


def descriptor(name: str, *regions: str) -> TaskDescriptor:
    return parse_mapping(
        {
            "task": name,
            "regions": list(regions),
            "server": {"address": "127.0.0.1:8000", "tls": False},
            "model": {"name": "softmax"},
            "data": {"name": "digits", "shape": [1, 8, 8], "classes": 10},
            "train": {"rounds": 1, "batch_size": 16, "learning_rate": 0.1},
        }
    )


class Posted:
    """What is asked of the server's tasks."""

    def __init__(self) -> None:
        self.all: dict[str, Any] = {}

    def add(self, name: str, *regions: str, ended: bool = False) -> Any:
        self.all[name] = SimpleNamespace(descriptor=descriptor(name, *regions), ended=ended)
        return self.all[name]

    def find(self, name: str) -> Any:
        if name not in self.all:
            raise Refused("unknown", f"there is no task {name!r}")
        return self.all[name]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.all.values())


class Asked:
    """Stands for the exporter, and keeps what it was asked for."""

    def __init__(self) -> None:
        self.begun: list[tuple[str, str]] = []
        self.news = asyncio.Event()

    async def begin(self, wanted: Wanted) -> None:
        self.begun.append((wanted.model, wanted.runtime))
        self.news.set()

    async def offer(self, wanted: Wanted) -> Any:
        raise NotYet(f"exporting {wanted.model}")


def info(backend: str | None) -> bytes:
    born = Info(version="1", python="3", platform="l", machine="x", cpus=1, memory_mb=1, backends=("torch",))
    return born.model_copy(update={"backend": backend}).to_bytes()


@asynccontextmanager
async def heard(artefacts: TaskArtefacts, broker: MemoryBroker) -> AsyncIterator[Any]:
    async with broker.bus("server") as server, broker.bus("device") as device:
        await device.wait_connected(60)
        listening = asyncio.create_task(artefacts.listen(server, TOPICS))

        async def say(region: str, name: str, payload: bytes) -> None:
            await device.publish(f"{TOPICS.base}/{region}/devices/{name}/info", payload, retain=True)

        yield say
        listening.cancel()


async def test_a_task_that_comes_after_its_devices_is_exported_for_what_they_train_with() -> None:
    posted, exporter = Posted(), Asked()
    artefacts = TaskArtefacts(cast(Tasks, posted), cast(Exporter, exporter))
    running = posted.add("running", "eu-1")
    async with heard(artefacts, MemoryBroker()) as say:
        await say("eu-1", "d0", b"no info")
        await say("eu-1", "d1", info("torch"))
        await say("eu-1", "d2", info(None))
        await say("us-1", "d3", info("onnx"))
        await say("eu-1", "d4", info("tflite"))
        await asyncio.wait_for(exporter.news.wait(), 60)
        assert exporter.begun == [("softmax", "tflite")], "of the task that runs there, for what is new there"
        await artefacts.begin(running)
        await artefacts.begin(posted.add("both", "eu-1", "us-1"))
        assert exporter.begun[1:] == [("softmax", "tflite"), ("softmax", "onnx"), ("softmax", "tflite")]


async def test_devices_that_come_after_their_task_have_it_exported_once_for_all() -> None:
    posted, exporter = Posted(), Asked()
    artefacts = TaskArtefacts(cast(Tasks, posted), cast(Exporter, exporter))
    posted.add("over", "eu-1", ended=True)
    posted.add("running", "eu-1", "us-1")
    async with heard(artefacts, MemoryBroker()) as say:
        for name in ("d1", "d2"):
            await say("eu-1", name, info("onnx"))
        await say("eu-1", "d3", info("tflite"))
        async with asyncio.timeout(60):
            while len(exporter.begun) < 2:
                exporter.news.clear()
                await exporter.news.wait()
        assert exporter.begun == [("softmax", "onnx"), ("softmax", "tflite")]


async def test_only_a_task_that_is_here_and_runs_has_an_artefact() -> None:
    posted = Posted()
    artefacts = TaskArtefacts(cast(Tasks, posted), cast(Exporter, Asked()))
    posted.add("running", "eu-1")
    posted.add("over", "eu-1", ended=True)
    with pytest.raises(NotYet, match="exporting softmax"):
        await artefacts.offer("running", "onnx")
    for name in ("over", "nowhere"):
        with pytest.raises(Refused) as refused:
            await artefacts.offer(name, "onnx")
        assert refused.value.code == "unknown"
