"""The demo's plan and its processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest

import trellis
from models.demo_command import describe
from trellis.cli.demo.children import Children
from trellis.cli.demo.plan import DemoPlan, plan_demo
from trellis.cli.demo.runtimes import parse_backends, python_of
from trellis.cli.demo.stage import Stage
from trellis.cli.watching.picture import DeviceView, Picture
from trellis.descriptor_tiers import Tier
from trellis.errors import ConfigError, DataError, DescriptorError, TrellisError, Unavailable
from trellis.payloads import Execution, ExecutionState, Presence, State

ROOT = Path(trellis.__file__).parent.parent


def plan(
    *,
    regions: int = 2,
    devices: int = 4,
    data: str = "digits",
    model: str | None = None,
    strategy: str = "fedavg",
    tier: Tier = "regional",
    backends: tuple[str, ...] = (),
) -> DemoPlan:
    return plan_demo(
        regions=regions,
        devices=devices,
        rounds=10,
        data=describe(data),
        model=model,
        strategy=strategy,
        split="iid",
        tier=tier,
        backends=backends,
    )


def test_devices_are_shared_out_to_the_regions_and_each_has_its_own_part() -> None:
    found = plan(devices=5)
    assert [(one.name, one.region) for one in found.devices] == [
        (one.name, one.region) for one in found.processes
    ]
    assert [(one.name, one.region, one.partition) for one in found.processes] == [
        ("cam-1", "eu-1", "0/5"),
        ("cam-2", "eu-1", "1/5"),
        ("cam-3", "eu-1", "2/5"),
        ("cam-4", "us-1", "3/5"),
        ("cam-5", "us-1", "4/5"),
    ]


def test_many_devices_share_a_process_for_each_region_and_have_each_their_own_part() -> None:
    found = plan(regions=3, devices=10)
    assert [(one.name, one.region, one.partition, one.replicas) for one in found.processes] == [
        ("cam", "eu-1", "0/10", 4),
        ("cam", "us-1", "4/10", 3),
        ("cam", "ap-1", "7/10", 3),
    ]
    assert [one.name for one in found.devices if one.region == "us-1"] == ["cam-1", "cam-2", "cam-3"]
    assert len(set(found.devices)) == found.task(8000).participants.minimum == 10


@pytest.mark.parametrize(("regions", "devices"), [(1, 1), (3, 3), (7, 20), (20, 100)])
def test_every_region_has_a_device(regions: int, devices: int) -> None:
    found = plan(regions=regions, devices=devices)
    assert {one.region for one in found.devices} == set(found.regions)
    assert len(found.regions) == regions


def test_more_regions_than_devices_are_refused() -> None:
    with pytest.raises(ConfigError, match="1 are fewer than the 2 regions"):
        plan(devices=1)


def test_devices_take_turns_with_the_backends() -> None:
    found = plan(backends=("torch", "onnx", "tflite"))
    assert [(one.name, one.backend) for one in found.processes] == [
        ("cam-1", "torch"),
        ("cam-2", "onnx"),
        ("cam-3", "tflite"),
        ("cam-4", "torch"),
    ]
    assert {one.backend for one in plan().processes} == {None}


def test_many_devices_share_a_process_for_each_region_and_backend() -> None:
    found = plan(devices=11, backends=("onnx", "tflite"))
    assert [(one.name, one.region, one.partition, one.replicas, one.backend) for one in found.processes] == [
        ("cam-onnx", "eu-1", "0/11", 3, "onnx"),
        ("cam-tflite", "eu-1", "3/11", 3, "tflite"),
        ("cam-onnx", "us-1", "6/11", 3, "onnx"),
        ("cam-tflite", "us-1", "9/11", 2, "tflite"),
    ]
    assert [one.name for one in found.devices][2:5] == ["cam-onnx-3", "cam-tflite-1", "cam-tflite-2"]
    assert len(set(found.devices)) == 11


def test_more_backends_than_devices_are_refused() -> None:
    with pytest.raises(ConfigError, match="2 are fewer than the 3 backends"):
        plan(devices=2, backends=("torch", "onnx", "tflite"))


@pytest.mark.parametrize("text", ["", "torch,", "torch,keras", "onnx,onnx"])
def test_backends_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=f"'{text}' came, some of torch, onnx, tflite are due, each once"):
        parse_backends(text)


@pytest.mark.parametrize("built", [[], ["bin/python"], ["installed"]])
def test_an_environment_that_is_not_there_or_half_built_is_named_with_its_remedy(
    tmp_path: Path, built: list[str]
) -> None:
    for name in built:
        (tmp_path / "onnx" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "onnx" / name).touch()
    with pytest.raises(ConfigError, match=r"backends: .*no environment for onnx at .*make runtimes"):
        python_of("onnx", tmp_path)


def test_the_task_waits_for_all_devices() -> None:
    task = plan(devices=3).task(8000)
    assert (task.participants.minimum, task.server.address, task.server.tls) == (3, "127.0.0.1:8000", False)
    assert (task.model.name, task.data.shape, task.data.classes) == ("mlp", (1, 8, 8), 10)


def test_each_region_averages_all_of_its_devices_unless_the_centre_is_to() -> None:
    task = plan(devices=5).task(8000)
    assert {region: task.tier_of(region) for region in task.regions} == {
        "eu-1": "regional",
        "us-1": "regional",
    }
    counts = [task.participants_at(tier).minimum for tier in ("central", "eu-1", "us-1")]
    assert counts == [2, 3, 2]
    flat = plan(devices=5, tier="central").task(8000)
    assert not flat.has_regions
    assert flat.participants_at("central").minimum == 5


def test_a_strategy_that_is_no_name_is_a_fault_of_the_task() -> None:
    with pytest.raises(DescriptorError, match=r"strategy\.name"):
        plan(strategy="Fed Avg").task(8000)


def test_a_strategy_that_needs_more_devices_is_refused_before_anything_starts() -> None:
    with pytest.raises(DescriptorError, match=r"'krum' .* needs 5 updates in a round .* at least 6"):
        plan(strategy="krum", tier="central").task(8000)
    assert plan(strategy="krum", devices=6, tier="central").task(8000).strategy.name == "krum"


def test_pictures_of_28_by_28_get_lenet5_unless_another_model_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "mnist.npz"
    x, y = np.zeros((6, 28, 28), np.uint8), np.arange(6)
    np.savez(path, x_train=x, y_train=y, x_test=x, y_test=y)
    found = plan(data=str(path))
    assert (found.model, found.data.name, found.data.shape, found.data.classes) == (
        "lenet5",
        "mnist",
        (1, 28, 28),
        6,
    )
    assert found.data.source == f"mnist={path}"
    assert plan(data=f"other={path}", model="mlp").model == "mlp"
    assert describe(f"other={path}").name == "other"


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not a zip", None])
def test_data_that_cannot_be_read_are_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "bad.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=r"bad\.npz"):
        describe(str(path))


def test_the_end_waits_for_the_word_of_each_device_that_lives(tmp_path: Path) -> None:
    demo = plan(regions=1, devices=2)
    stage = Stage(demo, tmp_path, tmp_path)
    one, other = ((device.region, device.name) for device in demo.devices)
    online, offline = (DeviceView(State(state=at, boot_id="b", since=1)) for at in Presence)

    def says(view: DeviceView, state: ExecutionState) -> DeviceView:
        return replace(view, executions={stage._task.task: Execution(state=state)})

    trains, ended = (says(online, at) for at in (ExecutionState.IN_PROGRESS, ExecutionState.SUCCEEDED))
    died = says(offline, ExecutionState.IN_PROGRESS)

    def is_over(**views: DeviceView) -> bool:
        at = {"one": one, "other": other}
        return stage._all_ended(Picture(devices={at[name]: view for name, view in views.items()}))

    assert is_over(one=ended, other=ended)
    assert is_over(one=ended, other=died)
    assert not is_over(one=ended, other=trains)
    assert not is_over(one=ended, other=online)
    assert not is_over(one=ended)


async def test_a_child_that_ends_by_itself_is_named_with_its_last_words(tmp_path: Path) -> None:
    async with Children(tmp_path) as children:
        child = children.start("wrong", "task", "validate", "none.yaml")
        with pytest.raises(
            Unavailable, match=r"wrong has ended \(exit status 2\):\n    error: task file 'none.yaml'"
        ):
            await children.until_one_ends([child])


async def test_the_result_of_a_command_is_what_it_prints(tmp_path: Path) -> None:
    async with Children(tmp_path) as children:
        printed = await children.result_of("schema", "task", "schema", timeout_s=60)
        assert json.loads(printed)["title"] == "TaskDescriptor"
        with pytest.raises(TrellisError, match=r"bad failed \(exit status 2\):\n    error: "):
            await children.result_of("bad", "nonsense", timeout_s=60)


async def test_children_see_none_of_the_users_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRELLIS_NONSENSE", "1")
    async with Children(tmp_path) as children:
        assert await children.result_of("schema", "task", "schema", timeout_s=60)


async def test_a_child_of_another_environment_gets_none_of_our_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", "/ours")
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho path=$PYTHONPATH arguments=$*\n")
    python.chmod(0o755)
    async with Children(tmp_path) as children:
        child = children.start("other", "device", "--name", "d0", python=str(python))
        child.process.wait(60)
    assert child.log.read_text() == "path= arguments=-m trellis device --name d0\n"


async def test_no_child_is_left_when_the_children_are_left(tmp_path: Path) -> None:
    async with Children(tmp_path) as children:
        child = children.start("broker", "broker", "--port", "0")
        process = psutil.Process(child.process.pid)
        assert process.is_running()
    assert not process.is_running()


def test_ctrl_c_leaves_no_process_and_no_file(tmp_path: Path) -> None:
    work, temporary = tmp_path / "work", tmp_path / "temporary"
    work.mkdir()
    temporary.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-m", "trellis", "demo", "--regions", "1", "--devices", "1"],
        cwd=work,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(temporary)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        assert "is online" in process.stdout.readline()
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        assert len(family) > 4  # the demo, its broker and mosquitto, server, gateway, device
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        assert (process.returncode, errors) == (130, "stopped: nothing of the demo runs any more\n")
        assert [one for one in family if one.is_running() and one.status() != psutil.STATUS_ZOMBIE] == []
        assert (list(work.iterdir()), list(temporary.iterdir())) == ([], [])
    finally:
        process.kill()
        process.wait()
