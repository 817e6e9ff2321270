"""What the deployment's tests need: programs, and the shipped broker configuration under a real mosquitto."""

from __future__ import annotations

import contextlib
import queue
import signal
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.enums import CallbackAPIVersion
from shipped_broker import configuration, program

from trellis.keys import acl
from trellis.keys.authority import create_authority, issue
from trellis.keys.principals import BROKER, OPERATOR, SERVER, Principal, device, gateway
from trellis.loopback import free_ports
from trellis.topics import Topics

LIMIT_S = 60.0
GONE = {mqtt.MQTT_ERR_NO_CONN, mqtt.MQTT_ERR_CONN_LOST}
"""What paho says of a message whose connection ended while it was being handed over."""


@pytest.fixture(scope="session")
def need() -> Callable[[str], str]:
    """Finds a program: without it a test is skipped, and in CI it fails."""
    return program


class Client:
    """A connected MQTT client that remembers what reaches it."""

    def __init__(
        self, port: int, folder: Path | None, *, client_id: str = "", will: str = "", ca: Path | None = None
    ) -> None:
        self.received: queue.Queue[tuple[str, bytes]] = queue.Queue()
        self._answered, self._subscribed = threading.Event(), threading.Event()
        self._port = port
        self.paho = mqtt.Client(CallbackAPIVersion.VERSION2, client_id=client_id, reconnect_on_failure=False)
        context = ssl.create_default_context(cafile=ca or (folder / "ca.crt" if folder else None))
        if folder is not None:
            context.load_cert_chain(folder / "tls.crt", folder / "tls.key")
        self.paho.tls_set_context(context)
        if will:
            self.paho.will_set(will, b"will", qos=1)
        self.paho.on_connect = lambda *_: self._answered.set()
        self.paho.on_disconnect = lambda *_: self._answered.set()
        self.paho.on_subscribe = lambda *_: self._subscribed.set()
        self.paho.on_message = lambda _c, _u, message: self.received.put((message.topic, message.payload))

    def __enter__(self) -> Self:
        self.paho.connect("localhost", self._port, keepalive=30)
        self.paho.loop_start()
        assert self._answered.wait(LIMIT_S)
        if not self.paho.is_connected():
            self.paho.loop_stop()
            raise ConnectionRefusedError
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.paho.disconnect()
        self.paho.loop_stop()

    def subscribe(self, topic: str) -> None:
        self._subscribed.clear()
        self.paho.subscribe(topic, qos=1)
        assert self._subscribed.wait(LIMIT_S)

    def publish(self, topic: str, payload: bytes = b"x", *, retain: bool = False) -> None:
        """Return once the broker has taken it, or refused it: MQTT 3.1.1 does not say which."""
        sent = self.paho.publish(topic, payload, qos=1, retain=retain)
        deadline = time.monotonic() + LIMIT_S
        try:
            while not sent.is_published():
                if not self.paho.is_connected():
                    raise ConnectionResetError
                assert time.monotonic() < deadline
                time.sleep(0.002)
        except RuntimeError as error:
            if sent.rc not in GONE:
                raise
            raise ConnectionResetError from error

    def until(self, last: str) -> list[str]:
        """Return the topics received up to and including `last`."""
        topics: list[str] = []
        deadline = time.monotonic() + LIMIT_S
        while last not in topics:
            topics.append(self.received.get(timeout=max(0.01, deadline - time.monotonic()))[0])
        return topics

    def vanish(self) -> None:
        """Drop the connection without a word, so that the broker speaks the last will."""
        self.paho.loop_stop()
        raw = self.paho.socket()
        assert raw is not None
        raw.close()


class Broker:
    """A mosquitto that runs the shipped configuration, with only its paths and port replaced."""

    def __init__(self, program: str, keys: Path, folder: Path) -> None:
        self.keys = keys
        (self.port,) = free_ports(1)
        self._command = [program, "-c", str(folder / "mosquitto.conf")]
        self._process: subprocess.Popen[bytes] | None = None
        self.write_acl()
        text = configuration(keys / "broker", folder, "127.0.0.1", self.port)
        (folder / "mosquitto.conf").write_text(text, encoding="utf-8")

    def start(self) -> None:
        self._process = subprocess.Popen(self._command)
        deadline = time.monotonic() + LIMIT_S
        while time.monotonic() < deadline:
            assert self._process.poll() is None, f"mosquitto ended with {self._process.returncode}"
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            time.sleep(0.02)
        pytest.fail("mosquitto does not listen")

    def stop(self) -> None:
        assert self._process is not None
        self._process.terminate()
        try:
            self._process.wait(LIMIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise

    def reload(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGHUP)

    def write_acl(self, *, bridged: str | None = None, below: Mapping[str, str] | None = None) -> None:
        """Do what `trellis keys acl` does."""
        acl.write(self.keys, Topics(), bridged=None if bridged is None else [bridged], below=below)

    def intruder(self, folder: Path | None) -> Client:
        """A client that trusts this broker and shows another fleet's certificate, or none."""
        return Client(self.port, folder, ca=self.keys / "ca" / "ca.crt")

    def client(self, principal: Principal, *, client_id: str = "", will: str = "") -> Client:
        return Client(self.port, self.keys / principal.folder, client_id=client_id, will=will)


@pytest.fixture
def broker(tmp_path: Path, need: Callable[[str], str]) -> Iterator[Broker]:
    """A running broker; its fleet has a server, an operator, two gateways and three devices."""
    program = need("mosquitto")
    keys, folder = tmp_path / "keys", tmp_path / "broker"
    create_authority(keys)
    for principal in (SERVER, BROKER, gateway("eu-1"), gateway("us-1")):
        issue(keys, principal)
    for principal in (device("eu-1", "cam-7"), device("eu-1", "cam-8"), device("us-1", "cam-7")):
        issue(keys, principal)
    folder.mkdir()
    running = Broker(program, keys, folder)
    running.start()
    yield running
    running.stop()


@pytest.fixture
def listener(broker: Broker) -> Iterator[Client]:
    """The operator, who sees everything."""
    with broker.client(OPERATOR) as client:
        client.subscribe("trellis/v1/#")
        yield client
