"""Hears what a federation says on MQTT: the latest payload of each topic, and all rounds."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from typing import Any, Self

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

BASE = "trellis/v1/"


class Observer:
    """An MQTT client on everything below the base; connects again by itself.

    Attributes:
        latest: What was last said, by topic without the base; changed by the client's own thread.
        heard: Every message with the monotonic time of its coming.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._client = paho.Client(CallbackAPIVersion.VERSION2, client_id=f"bench-{time.monotonic_ns()}")
        self._client.reconnect_delay_set(1, 1)
        self._client.on_connect = self._subscribe
        self._client.on_message = self._hear
        self._lock = threading.Lock()
        self.latest: dict[str, dict[str, Any]] = {}
        self.heard: list[tuple[float, str, dict[str, Any]]] = []

    def __enter__(self) -> Self:
        self._client.connect_async("127.0.0.1", self._port, keepalive=20)
        self._client.loop_start()
        return self

    def __exit__(self, *_: object) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def field(self, topic: str, name: str) -> object:
        """Return a field of what was last said on a topic, or None."""
        with self._lock:
            return self.latest.get(topic, {}).get(name)

    def said(self, topic: str, since: float = 0.0) -> list[dict[str, Any]]:
        """Return all that was said on a topic since that monotonic time."""
        with self._lock:
            return [payload for at, heard, payload in self.heard if heard == topic and at >= since]

    def when(self, topic: str, since: float, holds: Callable[[dict[str, Any]], bool]) -> float | None:
        """Return when something that holds was first said on a topic after that monotonic time."""
        found = None
        with self._lock:
            for at, heard, payload in reversed(self.heard):
                if at < since:
                    break
                if heard == topic and holds(payload):
                    found = at
        return found

    def _subscribe(self, client: paho.Client, *_: object) -> None:
        client.subscribe(f"{BASE}#", qos=1)

    def _hear(self, _client: paho.Client, _data: object, message: paho.MQTTMessage) -> None:
        topic = message.topic.removeprefix(BASE)
        payload = json.loads(message.payload) if message.payload else {}
        with self._lock:
            self.latest[topic] = payload
            self.heard.append((time.monotonic(), topic, payload))
