"""TrellisGrid with Flower's own strategies, unmodified, on a real SuperLink with real links."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import pytest_asyncio
from flower_parts import scripted_app
from flwr.app import ConfigRecord, Error, Message, MetricRecord, RecordDict

from trellis.errors import Refused, Unavailable
from trellis.flower.backchannel import FleetDevice, FleetView
from trellis.flower.link import FlowerLink
from trellis.flower.superlink import SuperLink
from trellis.payloads import ExecutionState
from trellis.tensors import pack_arrays, unpack_arrays

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(180)]

Behave = Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]


def adding(value: float) -> Behave:
    return lambda arrays: {name: array + np.float32(value) for name, array in arrays.items()}


@dataclass
class Device:
    """What a device does: its samples, its training, and whether it vanishes with the first train message.

    One that is `stock` sends its messages as a stock SuperNode does: never inline.
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
            time.sleep(0.02)
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
    """Have `calls` show every request about objects."""
    client: Any = link._connected()

    def noted(name: str, call: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def noting(request: Any) -> Any:
            calls.append(name)
            return call(request)

        return noting

    for name in ("PullObject", "PushObject"):
        setattr(client, name, noted(name, getattr(client, name)))


def upload_half(link: FlowerLink, reply: Message) -> None:
    """Break the connection after the first object of the reply, which goes as objects."""
    link._inline.clear()
    client: Any = link._connected()
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


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def superlink(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[SuperLink]:
    async with SuperLink(folder=tmp_path_factory.mktemp("superlink")) as running:
        yield running


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
            thread.join(10)


async def run(
    superlink: SuperLink, folder: Path, devices: list[Device], name: str, **options: Any
) -> dict[str, Any]:
    defaults = {"params": {}, "rounds": 1, "fold": False, "quorum": 1.0, "deadline_s": 20.0}
    with fleet_of(devices, superlink.address, folder) as fleet:
        async with scripted_app(superlink, folder) as app:
            command = defaults | {"devices": len(devices), "view": str(fleet.path), "name": name} | options
            return await app("strategy", **command)


HONEST = [Device("a", 100, adding(1.0)), Device("b", 300, adding(2.0))]


@pytest.mark.parametrize("fold", [False, True])
async def test_fedavg_weighs_by_examples(superlink: SuperLink, tmp_path: Path, fold: bool) -> None:
    result = await run(superlink, tmp_path, HONEST, "FedAvg", rounds=2, fold=fold)
    # (100 * 1 + 300 * 2) / 400 = 1.75 a round, from zero, two rounds.
    assert result["arrays"] == {"w": [3.5] * 4, "b": [[3.5, 3.5], [3.5, 3.5]]}
    assert result["metrics"]["1"]["train_loss"] == pytest.approx(1.0)


async def test_devices_that_take_messages_inline_and_stock_ones_share_a_round(
    superlink: SuperLink, tmp_path: Path
) -> None:
    devices = [Device("a", 100, adding(1.0)), Device("b", 300, adding(2.0), stock=True)]
    result = await run(superlink, tmp_path, devices, "FedAvg", rounds=2)
    assert result["arrays"]["w"] == [3.5] * 4
    inline, stock = (device.calls[device.calls.index("query") + 1 :] for device in devices)
    # Its root object alone goes up, once the reply is there; nothing comes down but the message.
    assert "PullObject" not in inline
    assert inline.count("PushObject") in {4, 5}, inline  # query, 2 × train, 2 × evaluate; the last may be cut
    # Each of four messages as a parcel is three objects; the query's reply has three, an evaluation's, too.
    assert stock.count("PullObject") == 12
    assert stock.count("PushObject") == 15


async def test_krum_runs_unchanged_and_drops_the_outlier(superlink: SuperLink, tmp_path: Path) -> None:
    devices = [Device(n, 10, adding(v)) for n, v in zip("abcd", (1.0, 1.0, 1.0, 1000.0), strict=True)]
    result = await run(superlink, tmp_path, devices, "Krum", params={"num_malicious_nodes": 1})
    assert result["arrays"]["w"] == [1.0] * 4


async def test_qfedavg_runs_unchanged(superlink: SuperLink, tmp_path: Path) -> None:
    params = {"client_learning_rate": 0.1, "q": 0.0}
    result = await run(superlink, tmp_path, HONEST, "QFedAvg", params=params)
    # With q = 0 every device counts the same (Li et al. 2020, q-FedAvg, step 6): (1 + 2) / 2.
    np.testing.assert_allclose(result["arrays"]["w"], [1.5] * 4, rtol=1e-6)


async def test_a_lost_device_does_not_hold_up_a_round_that_has_its_quorum(
    superlink: SuperLink, tmp_path: Path
) -> None:
    devices = [*HONEST, Device("c", 100, adding(9.0), vanishes=True)]
    started = time.monotonic()
    result = await run(superlink, tmp_path, devices, "FedAvg", quorum=0.5, deadline_s=60.0)
    assert result["arrays"]["w"] == [1.75] * 4
    assert time.monotonic() - started < 40, "it waited for the deadline"


async def test_updates_that_do_not_fit_are_dropped_and_named(superlink: SuperLink, tmp_path: Path) -> None:
    devices = [
        *HONEST,
        Device("nan", 50, adding(float("nan"))),
        Device("shape", 50, lambda arrays: {**arrays, "w": np.zeros(5, np.float32)}),
        Device("dtype", 50, lambda arrays: {**arrays, "w": arrays["w"].astype(np.float64)}),
        Device("error", 50, adding(0.0), raises="loss is NaN at step 7"),
    ]
    result = await run(superlink, tmp_path, devices, "FedAvg", quorum=0.3)
    assert result["arrays"]["w"] == [1.75] * 4
    view = {o["device"]: o for o in result["train_outcomes"]}
    assert {name: o["outcome"] for name, o in view.items()} == {
        "a": "replied",
        "b": "replied",
        "nan": "failed",
        "shape": "failed",
        "dtype": "failed",
        "error": "failed",
    }
    assert "tensor 'w' holds NaN or infinity" in view["nan"]["reason"]
    assert "tensor 'w' has shape (5,), the round's model has (4,)" in view["shape"]["reason"]
    assert "tensor 'w' has dtype float64, the round's model has float32" in view["dtype"]["reason"]
    assert view["error"]["reason"] == "loss is NaN at step 7"


async def test_a_deadline_closes_the_phase(superlink: SuperLink, tmp_path: Path) -> None:
    def slow(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        time.sleep(12)  # longer than the phase: a straggler
        return arrays

    devices = [*HONEST, Device("slow", 10, slow)]
    result = await run(superlink, tmp_path, devices, "FedAvg", quorum=0.5, deadline_s=4.0)
    assert result["arrays"]["w"] == [1.75] * 4
    assert {o["device"]: o["outcome"] for o in result["train_outcomes"]}["slow"] == "late"


async def test_a_reply_that_is_never_whole_does_not_outlast_the_deadline(
    superlink: SuperLink, tmp_path: Path
) -> None:
    devices = [*HONEST, Device("half", 10, adding(9.0), uploads_half=True)]
    started = time.monotonic()
    result = await run(superlink, tmp_path, devices, "FedAvg", quorum=0.5, deadline_s=5.0)
    assert result["arrays"]["w"] == [1.75] * 4
    assert {o["device"]: o["outcome"] for o in result["train_outcomes"]}["half"] == "late"
    assert time.monotonic() - started < 60, "Flower itself would wait for two hours"


async def test_replies_that_differ_in_their_metrics_cost_nobody_the_round(
    superlink: SuperLink, tmp_path: Path
) -> None:
    devices = [*HONEST, Device("other", 400, adding(3.0), more={"f1": 0.5})]
    result = await run(superlink, tmp_path, devices, "FedAvg", fold=False)
    # (100*1 + 300*2 + 400*3) / 800
    assert result["arrays"]["w"] == [2.375] * 4
    assert set(result["metrics"]["1"]) == {"train_loss"}


async def test_a_device_that_stands_by_replaces_a_lost_one(superlink: SuperLink, tmp_path: Path) -> None:
    devices = [*HONEST, Device("c", 100, adding(5.0), vanishes=True), Device("d", 400, adding(3.0))]
    result = await run(
        superlink,
        tmp_path,
        devices,
        "FedAvg",
        quorum=1.0,
        deadline_s=60.0,
        shown=["eu-1/a", "eu-1/b", "eu-1/c"],
    )
    # c is gone and d stands in: (100*1 + 300*2 + 400*3) / 800 = 2.375
    assert result["arrays"]["w"] == [2.375] * 4


async def test_two_claims_on_one_node_let_in_only_the_one_that_the_node_confirms(
    superlink: SuperLink, tmp_path: Path
) -> None:
    with fleet_of(HONEST, superlink.address, tmp_path) as fleet:
        async with asyncio.timeout(20):
            while fleet.devices["a"].node_id is None:  # noqa: ASYNC110 - threads fill it
                await asyncio.sleep(0.02)
        with fleet.lock:
            fleet.devices["thief"] = FleetDevice(
                region="us-1",
                device="thief",
                online=True,
                state=ExecutionState.IN_PROGRESS,
                node_id=fleet.devices["a"].node_id,
            )
            fleet.write()
        async with scripted_app(superlink, tmp_path) as app:
            found = await app("members", view=str(fleet.path), devices=2, settle_s=3.0)
    assert found["members"] == ["eu-1/a", "eu-1/b"]
