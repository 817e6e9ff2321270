"""One rig for each kind of broker: it makes buses, cuts a client off, and kills and restarts the broker."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Literal, Protocol

import pytest
from reserved_ports import ReservedPorts

from trellis.errors import Unavailable
from trellis.mqtt import BrokerSettings, Bus, BusMessage, MemoryBroker, MqttBus
from trellis.mqtt.broker import EmbeddedBroker
from trellis.mqtt.broker_programs import Listener, amqtt_command, find_mosquitto

WAIT_S = 60.0
"""Catches a hang, and leaves a busy machine its time."""


class Rig(Protocol):
    kind: Literal["memory", "mosquitto", "amqtt"]

    def open(self, client_id: str, *, wait: bool = True, **options: Any) -> AbstractAsyncContextManager[Bus]:
        """Open a bus, connected unless `wait` is false: then nothing has been awaited since."""

    async def cut(self, client_id: str) -> None: ...

    async def kill(self) -> None: ...

    async def restart(self) -> None: ...


async def take(subscription: AsyncIterator[BusMessage], count: int = 1) -> list[BusMessage]:
    """Return the next messages, or fail at a deadline."""
    async with asyncio.timeout(WAIT_S):
        return [await anext(subscription) for _ in range(count)]


async def take_until(subscription: AsyncIterator[BusMessage], payload: bytes) -> list[BusMessage]:
    """Return all messages up to the one with `payload`, which is left out."""
    messages: list[BusMessage] = []
    async with asyncio.timeout(WAIT_S):
        async for message in subscription:
            if message.payload == payload:
                return messages
            messages.append(message)
    raise AssertionError("the subscription has ended")


async def until(condition: Callable[[], bool]) -> None:
    """Return once `condition` holds, or fail at a deadline."""
    async with asyncio.timeout(WAIT_S):
        while not condition():  # noqa: ASYNC110 - of foreign state there is no event
            await asyncio.sleep(0.01)


def missing(what: str) -> None:
    """Skip, but never where the tests must be whole."""
    if os.environ.get("CI"):
        pytest.fail(f"{what}, and CI is set")
    pytest.skip(what)


class MemoryRig:
    kind: Literal["memory"] = "memory"

    def __init__(self) -> None:
        self._broker = MemoryBroker()

    @contextlib.asynccontextmanager
    async def open(self, client_id: str, *, wait: bool = True, **options: Any) -> AsyncIterator[Bus]:
        async with self._broker.bus(client_id, **options) as bus:
            if wait:
                await bus.wait_connected(WAIT_S)
            yield bus

    async def cut(self, client_id: str) -> None:
        self._broker.cut(client_id)

    async def kill(self) -> None:
        self._broker.stop()

    async def restart(self) -> None:
        self._broker.start()


class Wire:
    """A TCP relay in front of a port: it can be cut, as a cable, or stalled, as a dead radio link."""

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._ends: set[asyncio.StreamWriter] = set()
        self._upward, self._downward = asyncio.Event(), asyncio.Event()
        self.resume()
        self.connections = 0
        self.port = 0

    async def __aenter__(self) -> Wire:
        self._server = await asyncio.start_server(self._relay, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self.resume()
        self.cut()
        await self._server.wait_closed()

    def cut(self) -> None:
        for end in list(self._ends):
            end.close()

    def stall(self) -> None:
        self._upward.clear()
        self.hold_answers()

    def hold_answers(self) -> None:
        """Stall what comes from the target alone."""
        self._downward.clear()

    def resume(self) -> None:
        self._upward.set()
        self._downward.set()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target_port)
        except OSError:
            writer.close()
            return
        self._ends |= {writer, far_writer}
        try:
            await asyncio.gather(
                self._pump(reader, far_writer, self._upward), self._pump(far_reader, writer, self._downward)
            )
        finally:
            self._ends -= {writer, far_writer}

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, flowing: asyncio.Event
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                await flowing.wait()
                writer.write(data)
                await writer.drain()
        writer.close()


class BrokerRig:
    """A real broker; each client has a wire of its own, so that one can be cut without the others."""

    def __init__(self, kind: Literal["mosquitto", "amqtt"], folder: Path) -> None:
        self.kind = kind
        self._folder = folder
        self._wires: dict[str, Wire] = {}
        self._reserved = ReservedPorts(1)  # nobody is given it while the broker is down
        (self._port,) = self._reserved.numbers
        self.broker = EmbeddedBroker(port=self._port, state_dir=folder, prefer=kind)

    async def __aenter__(self) -> BrokerRig:
        await self.broker.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        for wire in self._wires.values():
            await wire.__aexit__()
        await self.broker.__aexit__()
        self._reserved.release()

    async def wire(self, client_id: str) -> Wire:
        if client_id not in self._wires:
            self._wires[client_id] = await Wire(self._port).__aenter__()
        return self._wires[client_id]

    @contextlib.asynccontextmanager
    async def open(
        self, client_id: str, *, wait: bool = True, keepalive_s: int = 20, **options: Any
    ) -> AsyncIterator[Bus]:
        wire = await self.wire(client_id)
        settings = BrokerSettings(f"mqtt://127.0.0.1:{wire.port}", client_id, keepalive_s)
        async with MqttBus(settings, **options) as bus:
            if wait:
                await bus.wait_connected(WAIT_S)
            yield bus

    async def cut(self, client_id: str) -> None:
        self._wires[client_id].cut()

    async def kill(self) -> None:
        os.kill(self.broker.pid, signal.SIGKILL)
        await self.broker.__aexit__()

    async def restart(self) -> None:
        self.broker = EmbeddedBroker(port=self._port, state_dir=self._folder, prefer=self.kind)
        await self.broker.__aenter__()


@pytest.fixture(scope="session")
def amqtt_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where amqtt's environment is made by the first test that needs it; fetching it may take a minute."""
    return tmp_path_factory.mktemp("amqtt")


@pytest.fixture(params=["memory", "mosquitto", "amqtt"])
async def rig(request: pytest.FixtureRequest, tmp_path: Path, amqtt_folder: Path) -> AsyncIterator[Rig]:
    if request.param == "memory":
        yield MemoryRig()
        return
    if request.param == "mosquitto" and find_mosquitto() is None:
        missing("mosquitto is not installed")
    if request.param == "amqtt":
        try:
            await amqtt_command(Listener("127.0.0.1", 1), amqtt_folder)
        except Unavailable as error:
            missing(str(error))
    async with BrokerRig(request.param, amqtt_folder if request.param == "amqtt" else tmp_path) as started:
        yield started
