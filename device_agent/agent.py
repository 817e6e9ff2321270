"""The device's task loop on MQTT: one task at a time, later ones queue in the order of their posting."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Protocol

from device_agent.desk import TaskDesk
from device_agent.participation import Device
from device_agent.presence import Self
from device_agent.reporting import SPEAKER, TaskLog
from trellis.errors import ConfigError, Displaced, PayloadError, Unavailable
from trellis.mqtt import Birth, Bus, BusMessage, Publication
from trellis.payloads import Round, TaskStatus
from trellis.topics import Kind

logger = logging.getLogger(__name__)

CONNECT_S = 15.0
LOOK_AGAIN_S = 5.0
"""How often tasks that are out of their time by this device's clock are looked at again."""
LOGGED = ("device_agent", "models", "trellis.flower")
"""The loggers whose lines belong on a task's log topic."""


class OpenBus(Protocol):
    """Makes the bus of one boot, with its will and its births."""

    def __call__(self, *, will: Publication, birth: Birth) -> Bus: ...


def _utc_now() -> datetime:
    return datetime.now(UTC)


class DeviceAgent:
    """One device, from its birth to its goodbye."""

    def __init__(self, device: Device, this: Self, open_bus: OpenBus) -> None:
        self._device = device
        self._self = this
        self._open_bus = open_bus
        self._displaced = False
        self._desk: TaskDesk | None = None

    async def run(self, stop: asyncio.Event) -> None:
        """Return when `stop` is set; the task in hand is left so that the next start goes on with it.

        Raises:
            ConfigError: The broker is not there or not ours.
            Displaced: Another process has this device's name.
        """
        SPEAKER.set(self._device.settings.principal)
        async with self._open_bus(will=self._self.will, birth=self._births) as bus:
            await _require_connected(bus)
            log = self._attach_log(bus)
            try:
                async with bus.subscribe(*self._filters()) as messages:
                    await self._serve(bus, messages, log, stop)
            finally:
                _detach_log(log)
                if not self._displaced:  # the topic is the younger one's now
                    goodbye = self._self.goodbye()
                    await bus.publish(goodbye.topic, goodbye.payload, retain=True)

    async def _serve(
        self, bus: Bus, messages: AsyncIterator[BusMessage], log: TaskLog, stop: asyncio.Event
    ) -> None:
        desk = self._desk = TaskDesk(self._device, bus, log, now=_utc_now)
        logger.info(
            "device %s is ready in region %s", self._device.settings.name, self._device.settings.region
        )
        async with asyncio.TaskGroup() as group:
            lines = group.create_task(log.run(), name="log lines")
            tasks = [
                group.create_task(self._listen(bus, messages, desk), name="listen"),
                group.create_task(desk.work(), name="work"),
                group.create_task(_look_again(desk), name="look again"),
                group.create_task(desk.clear_forgotten(), name="clear forgotten"),
            ]
            await stop.wait()
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)  # they may have something to say of it
            lines.cancel()

    async def _listen(self, bus: Bus, messages: AsyncIterator[BusMessage], desk: TaskDesk) -> None:
        async for message in messages:
            if message.topic == self._self.state_topic:
                await self._hear_of_self(message.payload, bus)
                continue
            try:
                await self._hear(message, desk)
            except PayloadError as error:
                logger.warning("%s: %s", message.topic, error)
        raise Unavailable("the bus ended its subscription")

    async def _hear_of_self(self, payload: bytes, bus: Bus) -> None:
        try:
            repeat = self._self.must_repeat(payload)
        except Displaced:
            self._displaced = True
            raise
        if repeat:
            birth = self._self.birth()
            await bus.publish(birth.topic, birth.payload, retain=True)

    async def _hear(self, message: BusMessage, desk: TaskDesk) -> None:
        address = self._device.settings.topics.parse(message.topic)
        match address.kind:
            case Kind.DESCRIPTOR if message.payload:
                await desk.descriptor(address.task, message.payload)
            case Kind.DESCRIPTOR:
                await desk.removed(address.task)
            case Kind.TASK_ROUND if message.payload:
                desk.round_changed(address.task, Round.parse(message.payload))
            case Kind.TASK_STATUS if message.payload:
                await desk.status(address.task, TaskStatus.parse(message.payload))
            case _:
                pass

    def _births(self) -> tuple[Publication, ...]:
        return (*self._self.births(), *(self._desk.standing() if self._desk is not None else ()))

    def _filters(self) -> tuple[str, ...]:
        topics, region = self._device.settings.topics, self._device.settings.region
        kinds = (Kind.TASK_STATUS, Kind.TASK_ROUND, Kind.DESCRIPTOR)
        return (self._self.state_topic, *(topics.filter(kind, region=region) for kind in kinds))

    def _attach_log(self, bus: Bus) -> TaskLog:
        settings = self._device.settings
        log = TaskLog(bus, settings.topics, region=settings.region, device=settings.name)
        for name in LOGGED:
            logging.getLogger(name).addHandler(log)
        return log


def _detach_log(log: TaskLog) -> None:
    for name in LOGGED:
        logging.getLogger(name).removeHandler(log)


async def _require_connected(bus: Bus) -> None:
    try:
        await bus.wait_connected(CONNECT_S)
    except Unavailable as error:
        raise ConfigError("broker", str(error)) from error


async def _look_again(desk: TaskDesk) -> None:
    while True:
        await asyncio.sleep(LOOK_AGAIN_S)
        await desk.look_again()
