"""Watches the topics of a federation: everything that is said is kept, and can be waited for."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from trellis.mqtt import BrokerSettings, MqttBus
from trellis.topics import DEFAULT_BASE as BASE


@dataclass(frozen=True)
class Heard:
    """One message; `at` is this machine's monotonic clock."""

    topic: str
    payload: dict[str, Any] | None
    retain: bool
    at: float


class Observer:
    """An MQTT client on all topics, from `__aenter__` to `__aexit__`; it outlives the broker.

    Args:
        guard: Called while somebody waits; raises when waiting has become pointless.
    """

    def __init__(self, url: str, guard: Callable[[], None]) -> None:
        self._bus = MqttBus(BrokerSettings(url, "observer"))
        self._guard = guard
        self._news = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.heard: list[Heard] = []
        self.latest: dict[str, dict[str, Any]] = {}

    async def __aenter__(self) -> Observer:
        await self._bus.__aenter__()
        self._task = asyncio.create_task(self._listen(), name="observer")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._bus.__aexit__(None, None, None)

    async def connected(self, timeout_s: float) -> None:
        """Return once the broker has us."""
        await self._bus.wait_connected(timeout_s)

    async def _listen(self) -> None:
        async with self._bus.subscribe(f"{BASE}/#") as messages:
            async for message in messages:
                topic = message.topic.removeprefix(f"{BASE}/")
                payload = json.loads(message.payload) if message.payload else None
                self.heard.append(Heard(topic, payload, message.retain, time.monotonic()))
                if payload is None:
                    self.latest.pop(topic, None)
                else:
                    self.latest[topic] = payload
                self._news.set()

    async def until(self, holds: Callable[[], bool], what: str, *, within_s: float = 60.0) -> float:
        """Return the time at which `holds` was seen to hold after a message, or fail at the deadline."""
        deadline = time.monotonic() + within_s
        while not holds():
            left = deadline - time.monotonic()
            assert left > 0, f"not within {within_s:g} s: {what}"
            assert self._task is None or not self._task.done(), f"the observer ended: {self._task}"
            self._guard()
            self._news.clear()
            try:
                async with asyncio.timeout(min(left, 0.5)):
                    await self._news.wait()
            except TimeoutError:
                continue
        return time.monotonic()

    async def field(self, topic: str, name: str, *values: object, within_s: float = 60.0) -> float:
        """Return when the topic's present payload has one of `values` in the field `name`."""

        def holds() -> bool:
            return (self.latest.get(topic) or {}).get(name) in values

        return await self.until(holds, f"{topic}: {name} in {values}", within_s=within_s)

    async def once(self, topic: str, name: str, *values: object, within_s: float = 60.0) -> float:
        """Return when the field `name` has had one of `values`, for however short a time."""

        def held() -> bool:
            return any(value in values for value in self.said(topic, name))

        return await self.until(held, f"{topic}: {name} was once in {values}", within_s=within_s)

    def said(self, topic: str, name: str, since: float = 0.0) -> Sequence[Any]:
        """Return what the field `name` was, message by message, leaving out repetitions."""
        found: list[Any] = []
        for one in self.heard:
            value = (one.payload or {}).get(name)
            if one.topic == topic and one.at >= since and value is not None and found[-1:] != [value]:
                found.append(value)
        return found


async def retained(url: str) -> dict[str, dict[str, Any]]:
    """Return all that a broker retains, by topic below the base."""
    found: dict[str, dict[str, Any]] = {}
    async with MqttBus(BrokerSettings(url, "inventory")) as bus:
        await bus.wait_connected(60)
        async with bus.subscribe(f"{BASE}/#") as messages, asyncio.timeout(60):
            # A broker sends what it retains when it is asked, and so before what comes later.
            await bus.publish(f"{BASE}/end-of-inventory", b"{}")
            async for message in messages:
                topic = message.topic.removeprefix(f"{BASE}/")
                if topic == "end-of-inventory":
                    return found
                if message.retain:
                    found[topic] = json.loads(message.payload)
    raise AssertionError(f"broker {url} went away during the inventory")
