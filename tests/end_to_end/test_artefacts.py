"""Three runtimes in one task: what two of them train from is exported once, and comes down by gateways."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import norm_model
import numpy as np
import pytest
import pytest_asyncio
from artefact_fronts import CONTENT, Scripted, Switched, offer_of
from bad_artefacts import BAD, changed, contents, honest
from federation import Device, Federation
from members import ROOT, Machine, Member
from model_package import installed
from safetensors.numpy import load_file
from starlette.responses import Response

from device_agent.service import own_data
from device_agent.settings import DataSource
from device_agent.trainer import Request, Trainer
from models.backends import open_backend
from trellis.cli.task.delivery import post_to_gateways, read_signed
from trellis.descriptor import load
from trellis.flower.folding import WeightedMean
from trellis.http.server import HttpServer

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(500)]

BACKENDS = {"d1": "torch", "d2": "onnx", "d3": "onnx", "d4": "tflite"}
PARTITIONS = {"d5": "0/4", "d6": "1/8"}
SPY = ROOT / "tests" / "support" / "spy_modules"
PATIENT = {"deadline_s": 240.0}
PARTS = {"participants": {"minimum": 4, "quorum": 1.0, **PATIENT}}


LIES = Switched(Scripted(offer_of(), lambda _: Response(bytes(len(CONTENT)))))
"""A front that gives other bytes than it offers, until it is told to lie otherwise."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def lying() -> AsyncIterator[str]:
    async with HttpServer(LIES, host="127.0.0.1", port=0, tls=None) as server:
        yield f"127.0.0.1:{server.port}"


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package of a model of one's own, which server and d6 have and devices without PyTorch need not."""
    return installed(norm_model, tmp_path_factory.mktemp("package"))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fleet(
    tmp_path_factory: pytest.TempPathFactory, lying: str, package: Path
) -> AsyncIterator[Federation]:
    folder = tmp_path_factory.mktemp("artefacts") / "fleet"
    told = folder / "told"
    path = os.pathsep.join([str(SPY), str(ROOT)])
    spied = Machine(environment={"PYTHONPATH": path, "MODULES_TOLD": str(told)})
    devices = [
        Device(name, "eu-1", partition=f"{number}/4", options=("--backend", backend), machine=spied)
        for number, (name, backend) in enumerate(BACKENDS.items())
    ]
    bare = Machine(environment={"PYTHONPATH": str(ROOT)})
    fooled = Device(
        "d5",
        "us-1",
        partition=PARTITIONS["d5"],
        options=("--backend", "onnx", "--server", lying),
        machine=bare,
    )
    honest = Device("d6", "us-1", partition=PARTITIONS["d6"], options=("--backend", "torch"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(package))
        made = Federation(folder, devices=(*devices, fooled, honest))
        told.mkdir()
        made.gateways["us-1"].arguments += ("--front-address", lying)
        async with made as started:
            yield started


def sent(member: Member) -> Counter[str]:
    """Return how often a front has begun to send each artefact, by its digest."""
    return Counter(re.findall(r"trellis\.artefacts\.serving: artefact ([0-9a-f]{64}): ", member.said()))


async def test_three_runtimes_train_one_model_and_say_which_they_are(fleet: Federation) -> None:
    task = await fleet.submit("mixed", regions=("eu-1",), model={"name": "mlp"}, **PARTS)
    view = await fleet.ended(task, within_s=300)
    for record in view["history"]:
        assert {one["device"]: one["outcome"] for one in record["outcomes"]} == dict.fromkeys(
            BACKENDS, "replied"
        )
    assert view["metrics"]["accuracy"] > 0.5
    shown = await fleet.operator("task", "show", task)
    for name, backend in BACKENDS.items():
        topic = fleet.execution(name, task)
        assert set(fleet.mqtt.said(topic, "backend")) == {backend}
        assert ("fetching" in fleet.mqtt.said(topic, "phase")) == (backend != "torch")
        assert fleet.mqtt.latest[f"eu-1/devices/{name}/info"]["backend"] == backend
        (line,) = [line for line in shown.out.splitlines() if f"eu-1/{name} " in line]
        assert f" {backend} " in line


async def test_each_artefact_is_exported_once_and_passes_the_gateway_once(fleet: Federation) -> None:
    exported = re.findall(r"export mlp for (\w+), .*: begins", fleet.server.said())
    assert sorted(exported) == ["onnx", "tflite"]
    assert sorted(sent(fleet.server).values()) == [1, 1], (
        "the region relays: its gateway keeps them all the same"
    )
    assert sorted(sent(fleet.gateways["eu-1"]).values()) == [1, 2]


async def test_a_region_that_averages_has_it_from_its_gateway_and_no_device_fetches_twice(
    fleet: Federation,
) -> None:
    at_the_centre = sent(fleet.server)
    at_the_gateway = sent(fleet.gateways["eu-1"])
    regional: dict[str, Any] = {
        "aggregation": {"tier": "regional", "participants": {"minimum": 1, **PATIENT}},
        "model": {"name": "mlp"},
    }
    assert await fleet.devices["d2"].stop() == 0
    fleet.devices["d2"].start()
    await fleet.all_online()
    task = await fleet.submit("regional", regions=("eu-1",), **regional, **PARTS)
    await fleet.ended(task, within_s=300)
    for name in BACKENDS:
        await fleet.mqtt.field(fleet.execution(name, task), "state", "SUCCEEDED")
    assert sent(fleet.server) == at_the_centre
    assert sent(fleet.gateways["eu-1"]) == at_the_gateway, (
        "each has it in its own cache, d2 also after a restart"
    )


async def test_a_device_with_a_light_runtime_has_loaded_no_other(fleet: Federation) -> None:
    for name, backend in BACKENDS.items():
        pid = fleet.devices[name].pid
        mapped = Path(f"/proc/{pid}/maps").read_text()
        os.kill(pid, signal.SIGUSR1)
        told = fleet.folder / "told" / f"modules.{pid}"
        async with asyncio.timeout(60):
            while not told.exists():  # noqa: ASYNC110 - another process writes it
                await asyncio.sleep(0.05)
        modules = set(told.read_text().splitlines())
        loaded = {module.partition(".")[0] for module in modules}
        heavy = {"torch", "tensorflow", "jax", "onnx", "onnxscript", "litert_torch"} & loaded
        if backend == "torch":
            assert heavy == {"torch"}, "or else this would see nothing"
            assert "libtorch" in mapped
        else:
            runtimes = {"onnx": "onnxruntime", "tflite": "ai_edge_litert"}
            assert heavy == set()
            assert {"onnxruntime", "ai_edge_litert"} & loaded == {runtimes[backend]}
            assert not re.search("libtorch|tensorflow|libjax", mapped)
        assert not {"fastapi", "uvicorn", "sklearn", "grpc", "pygments", "requests", "sqlalchemy"} & loaded
        assert "flwr.supernode.fleet_http_client" in modules, "or else it has not loaded Flower"
        assert not {"flwr.server", "flwr.serverapp", "flwr.superlink"} & modules


@pytest.mark.long
async def test_a_model_of_ones_own_with_batch_statistics_ends_where_pytorch_alone_does(
    fleet: Federation, package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sections: dict[str, Any] = {
        "model": {"name": "norm"},
        "participants": {"minimum": 2, "quorum": 1.0, **PATIENT},
    }
    task = await fleet.submit("own", regions=("us-1",), **sections)
    view = await fleet.ended(task, within_s=300)
    assert [record["replied"] for record in view["history"]] == [2, 2]
    assert set(fleet.mqtt.said(fleet.execution("d5", task), "backend")) == {"onnx"}
    found = load_file(await fleet.model(task))

    monkeypatch.syspath_prepend(package)
    descriptor = load(fleet.folder / f"{task}.yaml")
    data = {
        name: own_data(DataSource("digits", tuple(map(int, part.split("/")))))
        for name, part in PARTITIONS.items()
    }
    seed = descriptor.train.seed
    due = open_backend("torch", "norm", shape=(1, 8, 8), classes=10, seed=seed).initial()
    for number in (1, 2):
        mean = WeightedMean()
        for name, samples in data.items():
            trainer = Trainer.open(
                descriptor, samples, backend="torch", region="us-1", device=name, threads=1
            )
            update = trainer.train(due, Request(number))
            mean.add(update.arrays, {}, len(samples))
        due = mean.arrays()
    assert found.keys() == due.keys()
    for name, array in due.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        np.testing.assert_allclose(found[name], array, atol=1e-4, err_msg=name)
    # 360 and 180 samples in batches of 16: 23 and 12 steps, (23·360 + 12·180) / 540 = 19.3, and that twice.
    counted = found["1.num_batches_tracked"]
    assert (counted.dtype, counted.item()) == (np.dtype(np.int64), 38)
    assert np.abs(found["1.running_mean"]).max() > 0.01, "they have moved from 0"


async def test_a_front_that_lies_is_passed_over_and_nothing_of_it_is_kept(fleet: Federation) -> None:
    cache = fleet.folder / "state" / "us-1" / "d5" / "artefacts"
    before, kept = len(fleet.devices["d5"].said()), set(cache.glob("*"))
    two = {"participants": {"minimum": 2, "quorum": 1.0, **PATIENT}}
    task = await fleet.submit("fooled", regions=("us-1",), model={"name": "mlp"}, **two)
    await fleet.ended(task, within_s=300)
    # What it still puts away of a task that has ended is nothing that changes later.
    await fleet.mqtt.field(fleet.execution("d5", task), "state", "SUCCEEDED")
    fooled = fleet.devices["d5"].said()[before:]
    assert len(re.findall(r"WARNING .*SHA-256", fooled)) == 1
    (used,) = re.findall(r"trains by onnx from artefact ([0-9a-f]{64})", fooled)
    assert [file.stem for file in set(cache.iterdir()) - kept] == [used]


async def test_a_device_rejects_every_bad_artefact_and_nothing_outside_its_cache_changes(
    fleet: Federation, lying: str
) -> None:
    (used,) = re.findall(r"trains by onnx from artefact ([0-9a-f]{64})", fleet.devices["d2"].said())[:1]
    # Its digest is another, so that no cache has it.
    good = changed(
        (fleet.folder / "runs" / ".artefacts" / "files" / used).read_bytes(),
        lambda model: setattr(model, "doc_string", "the same again"),
    )
    its_own = [fleet.folder / "state" / "us-1" / "d5", fleet.ground.home, fleet.ground.temporary]
    before = contents(*its_own)

    async def posted(name: str) -> str:
        server = {"address": lying, "tls": False}
        file = fleet.folder / fleet.task(name, regions=("us-1",), model={"name": "mlp"}, server=server)
        urls = {"us-1": fleet.gateway_urls["us-1"]}
        await post_to_gateways(read_signed(file, fleet.keys), urls, fleet.keys)
        return fleet.execution("d5", name)

    for number, (what, bad) in enumerate(BAD.items()):
        LIES.app = bad.front(good)
        topic = await posted(f"bad-{number}")
        await fleet.mqtt.field(topic, "state", "REJECTED")
        reason = fleet.mqtt.latest[topic]["reason"]
        assert reason["code"] == "artefact", (what, reason)
        assert re.search(bad.problem, reason["message"]), (what, reason)
        assert contents(*its_own) == before, what
    LIES.app = honest(good)
    await fleet.mqtt.field(await posted("good"), "phase", "connecting")
    assert set(contents(*its_own)) - set(before), "or else this would see nothing"
