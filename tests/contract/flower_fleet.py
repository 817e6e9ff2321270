"""Devices of a test: threads with real links to a SuperLink, and the ServerApp's view of them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from trellis.errors import Refused, Unavailable
from trellis.flower.backchannel import FleetDevice, FleetView
from trellis.flower.link import FlowerLink
from trellis.payloads import ExecutionState
from trellis.tensors import pack_arrays, unpack_arrays

Behave = Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]


def adding(value: float) -> Behave:
    return lambda arrays: {name: array + np.float32(value) for name, array in arrays.items()}


@dataclass
class Device:
    """What a device does: its samples, its training, and whether it vanishes with the first train message.

    One that is `stock` sends its messages as a stock SuperNode does: never inline. One with an `app` answers
    what that does.
    """

    name: str
    samples: int
    train: Behave
    vanishes: bool = False
    uploads_half: bool = False
    stock: bool = False
    raises: str | None = None
    more: dict[str, float] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    app: ClientApp | None = None


@dataclass
class Fleet:
    """The view that the test writes for the app, and the devices' threads."""

    path: Path
    devices: dict[str, FleetDevice] = field(default_factory=dict)
    version: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def update(self, name: str, **fields: Any) -> None:
        with self.lock:
            self.devices[name] = self.devices[name].model_copy(update=fields)
            self.write()

    def write(self) -> None:
        self.version += 1
        partial = self.path.with_suffix(".partial")
        view = FleetView(version=self.version, devices=tuple(self.devices.values()))
        partial.write_bytes(view.model_dump_json().encode())
        partial.replace(self.path)


def live(device: Device, fleet: Fleet, address: str, folder: Path, stop: threading.Event) -> None:
    link = FlowerLink(address, folder=folder, tls=None)
    fleet.update(device.name, node_id=link.connect(), online=True)
    note_calls(link, device.calls)
    while not stop.is_set():
        message = link.pull()
        if message is None:
            time.sleep(0.01 * len(fleet.devices))  # a SuperLink takes about a hundred pulls a second
            continue
        device.calls.append(message.metadata.message_type)
        if device.stock:
            link._inline.clear()
        if message.metadata.message_type == "train" and device.vanishes:
            fleet.update(device.name, online=False)
            return
        reply = answer(device, message)
        if message.metadata.message_type == "query":
            fleet.update(device.name, nonce=str(message.content["config"]["nonce"]))
        if message.metadata.message_type == "train" and device.uploads_half:
            upload_half(link, reply)
            # It says that all is there, and is not.
            fleet.update(device.name, message_id=message.metadata.message_id)
            continue
        try:
            fleet.update(device.name, message_id=link.push(reply))
        except Refused:
            continue  # the phase closed without us
    link.close(deactivate=True)


def note_calls(link: FlowerLink, calls: list[str]) -> None:
    """Have `calls` show every object that goes up or comes down."""
    client: Any = link._node.client

    def noted(name: str, call: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def noting(request: Any) -> Any:
            response = call(request)
            # A message can be pulled before its objects have reached the SuperLink: Flower asks again then.
            if name != "PullObject" or response.object_available:
                calls.append(name)
            return response

        return noting

    for name in ("PullObject", "PushObject"):
        setattr(client, name, noted(name, getattr(client, name)))


def upload_half(link: FlowerLink, reply: Message) -> None:
    """Break the connection after the first object of the reply, which goes as objects."""
    link._inline.clear()
    client: Any = link._node.client
    push_object, pushed = client.PushObject, []

    def cut(request: Any) -> Any:
        if pushed:
            raise httpx.ReadError("cut")
        pushed.append(request)
        return push_object(request)

    client.PushObject = cut
    try:
        with pytest.raises(Unavailable):
            link.push(reply)
    finally:
        client.PushObject = push_object


def answer(device: Device, message: Message) -> Message:
    kind = message.metadata.message_type
    if device.app is not None:
        return device.app(message, Context(1, message.metadata.dst_node_id, {}, RecordDict(), {}))
    if kind == "query":
        config = dict(message.content["config"]) | {
            "region": "eu-1",
            "device": device.name,
            "samples": device.samples,
        }
        return Message(RecordDict({"config": ConfigRecord(config)}), reply_to=message)
    metrics = MetricRecord({"num-examples": device.samples, "train_loss": 1.0, **device.more})
    if kind == "evaluate":
        return Message(RecordDict({"metrics": metrics}), reply_to=message)
    assert message.content["config"]["task"] == "t"
    assert message.content["config"]["round"] == message.content["config"]["server-round"] >= 1
    if device.raises:
        return Message(Error(code=100, reason=device.raises), reply_to=message)
    arrays = device.train(dict(unpack_arrays(message.content["arrays"])))
    return Message(RecordDict({"arrays": pack_arrays(arrays), "metrics": metrics}), reply_to=message)


@contextmanager
def fleet_of(devices: list[Device], address: str, folder: Path) -> Iterator[Fleet]:
    fleet = Fleet(folder / "view.json")
    for device in devices:
        fleet.devices[device.name] = FleetDevice(
            region="eu-1", device=device.name, online=False, state=ExecutionState.IN_PROGRESS
        )
    fleet.write()
    stop = threading.Event()
    threads = [
        threading.Thread(target=live, args=(device, fleet, address, folder / device.name, stop))
        for device in devices
    ]
    for thread in threads:
        thread.start()
    try:
        yield fleet
    finally:
        stop.set()
        for thread in threads:
            thread.join(60)
        assert not [thread for thread in threads if thread.is_alive()]
