"""A gateway in this process, on brokers in memory, and an operator who signs its tasks."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from process_superlink import ProcessSuperLink

from regional_gateway import api
from regional_gateway.service import Gateway
from regional_gateway.settings import GatewaySettings
from regional_gateway.store import Store
from regional_gateway.tier import RegionalTier
from trellis.descriptor import TaskDescriptor, parse_mapping
from trellis.envelope import Keyring, sign
from trellis.http.server import HttpServer
from trellis.mqtt import Birth, Bus, MemoryBroker, Publication
from trellis.payloads import (
    CentralTask,
    Execution,
    ExecutionState,
    Phase,
    Presence,
    Round,
    RoundPhase,
    State,
    TaskState,
    TaskStatus,
)
from trellis.signing_key import SigningKey
from trellis.tier.supervision import RunTiming

REGION_URL, PARENT_URL = "mqtt://127.0.0.1:11", "mqtt://127.0.0.1:12"
BASE = "trellis/v1"
REGION_APP = Path(__file__).parent / "stand_in_region.py"
DEADLINE_S = 60.0
"""Catches a hang, and leaves a busy machine its time."""
QUICK = RunTiming(hello_s=DEADLINE_S, watch_s=0.05, cancel_s=1.0, leave_s=2.0)


@dataclass
class Operator:
    """Signs tasks."""

    key: SigningKey = field(default_factory=SigningKey.generate)

    @property
    def keyring(self) -> Keyring:
        return Keyring([self.key.public])

    def descriptor(self, **changes: Any) -> TaskDescriptor:
        return parse_mapping(
            {
                "task": "digits",
                "regions": ["eu-1", "us-1"],
                "server": {"address": "127.0.0.1:8000", "tls": False},
                "model": {"name": "mlp"},
                "data": {"name": "digits", "shape": [64], "classes": 10},
                "train": {"rounds": 3, "learning_rate": 0.1},
                **changes,
            }
        )

    def envelope(self, **changes: Any) -> bytes:
        return sign(self.descriptor(**changes).to_json(), self.key).to_bytes()


@dataclass
class Watcher:
    """What a plain MQTT client has seen of a broker."""

    bus: Bus
    retained: dict[str, bytes] = field(default_factory=dict)
    heard: list[tuple[str, bytes]] = field(default_factory=list)

    async def follow(self) -> None:
        async with self.bus.subscribe("#") as messages:
            async for message in messages:
                topic = message.topic.removeprefix(f"{BASE}/")
                self.heard.append((topic, message.payload))
                self.retained[topic] = message.payload

    def status(self) -> TaskStatus | None:
        data = self.retained.get("eu-1/tasks/digits/status")
        return TaskStatus.parse(data) if data else None

    async def publish(self, topic: str, payload: bytes) -> None:
        await self.bus.publish(f"{BASE}/{topic}", payload, retain=True)


@dataclass
class Running:
    """A gateway at work."""

    gateway: Gateway
    http: httpx.AsyncClient
    task: asyncio.Task[None]

    async def post(self, data: bytes) -> tuple[int, dict[str, Any]]:
        answer = await self.http.post("/v1/tasks", content=data)
        return answer.status_code, answer.json()


@dataclass
class World:
    """Two brokers in memory (the same one twice, unless `two`) and what gateways leave on disk."""

    folder: Path
    operator: Operator
    two: bool = False
    keep_hours: float = 24.0
    server: str = "http://127.0.0.1:9"  # the discard port: nobody answers
    region: MemoryBroker = field(default_factory=MemoryBroker)
    upper: MemoryBroker = field(default_factory=MemoryBroker)

    @property
    def parent(self) -> MemoryBroker:
        return self.upper if self.two else self.region

    def connect(self, url: str, client_id: str, *, will: Publication, birth: Birth) -> Bus:
        broker = self.region if url == REGION_URL else self.upper
        return broker.bus(client_id, will=will, birth=birth)

    script: list[str] = field(default_factory=list)
    superlinks: list[ProcessSuperLink] = field(default_factory=list)

    @contextlib.asynccontextmanager
    async def superlink(self, environment: Mapping[str, str]) -> AsyncIterator[ProcessSuperLink]:
        superlink = ProcessSuperLink(REGION_APP, environment, self.script)
        self.superlinks.append(superlink)
        try:
            yield superlink
        finally:
            superlink.died.set()
            await superlink.end()

    @contextlib.asynccontextmanager
    async def gateway(
        self, region: str = "eu-1", *, front: bool = False, parent: str | None = None, serves: bool = True
    ) -> AsyncIterator[Running]:
        state = self.folder / region
        settings = GatewaySettings(
            region=region,
            keys=self.folder,
            broker=REGION_URL,
            parent_broker=PARENT_URL if self.two else REGION_URL,
            server=self.server,
            parent=parent,
            front_port=0 if front else None,
            state=state,
            timing=QUICK,
            insecure=True,
            keep_hours=self.keep_hours,
        )
        stop = asyncio.Event()
        async with Store(state / "gateway.sqlite") as store, contextlib.AsyncExitStack() as stack:
            tier = None
            if front:
                tier = await stack.enter_async_context(RegionalTier(settings, None, self.superlink))
            keyring = self.operator.keyring
            gateway = Gateway(settings, store, keyring=keyring, tls=None, connect=self.connect, tier=tier)
            await gateway.load()
            async with HttpServer(api.create(gateway), host="127.0.0.1", port=0, tls=None) as server:
                task = asyncio.create_task(gateway.run(server.url, stop))
                async with httpx.AsyncClient(
                    base_url=server.url, trust_env=False, timeout=DEADLINE_S
                ) as http:
                    try:
                        await eventually(lambda: gateway.serving or task.done() or not serves)
                        yield Running(gateway, http, task)
                    finally:
                        stop.set()
                        await asyncio.wait_for(task, DEADLINE_S)

    @contextlib.asynccontextmanager
    async def watcher(self, broker: MemoryBroker, name: str = "watcher") -> AsyncIterator[Watcher]:
        async with broker.bus(name) as bus:
            await bus.wait_connected(DEADLINE_S)
            watcher = Watcher(bus)
            task = asyncio.create_task(watcher.follow())
            yield watcher
            task.cancel()


class Say:
    """Payloads as the centre and devices send them."""

    def round(self, number: int) -> bytes:
        return Round(round=number, rounds=3, phase=RoundPhase.TRAIN, announced=number).to_bytes()

    def central(self, state: TaskState, revision: int = 1) -> bytes:
        return CentralTask(task="digits", revision=revision, state=state, since=1, rounds=3).to_bytes()

    def execution(self, state: ExecutionState, version: int = 1, revision: int = 0) -> bytes:
        return Execution(state=state, version=version, phase=Phase.WAITING, revision=revision).to_bytes()

    def online(self, since: int = 3) -> bytes:
        return State(state=Presence.ONLINE, boot_id="b", since=since).to_bytes()


async def eventually(condition: Callable[[], Any], timeout_s: float = DEADLINE_S) -> Any:
    """Return the first true value of `condition`."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    while not (value := condition()):
        if loop.time() > deadline:
            raise AssertionError(f"did not come true within {timeout_s:g} s")
        await asyncio.sleep(0.01)
    return value


@pytest.fixture
def operator() -> Operator:
    return Operator()


@pytest.fixture
def world(tmp_path: Path, operator: Operator) -> World:
    return World(tmp_path, operator)


@pytest.fixture
def wait_until() -> Callable[..., Awaitable[Any]]:
    return eventually


@pytest.fixture
def watching(world: World) -> Callable[..., AbstractAsyncContextManager[Watcher]]:
    return world.watcher


@pytest.fixture
def say() -> Say:
    return Say()
