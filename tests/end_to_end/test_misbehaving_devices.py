"""Devices whose training goes wrong, or whose disk is full: what they do harms nobody else, and is told."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import odd_model
import pytest
import pytest_asyncio
from federation import Device, Federation
from small_disk import fill, free, small_disk
from tensors_apart import greatest_difference

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(400)]

MISDEEDS = {
    1: "model 'odd' failed in torch: a gear is missing",
    2: "the trained model cannot be averaged: update: tensor 'linear.bias' holds NaN or infinity",
    3: "update: tensor 'linear.bias' holds NaN or infinity",
    4: "update: tensor 'linear.bias' holds NaN or infinity",
    5: "update: tensor 'linear.bias' has shape (20,), the round's model has (10,)",
    6: "update: tensor 'linear.bias' has dtype float64, the round's model has float32",
}
"""What the odd device does in its first trainings, and what is said of it. From the third on it is the server
that finds it out."""


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with small_disk(tmp_path_factory.mktemp("disk"), size="4m") as folder:
        yield folder


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fleet(tmp_path_factory: pytest.TempPathFactory, disk: Path) -> AsyncIterator[Federation]:
    offered = installed(tmp_path_factory.mktemp("package"))
    devices = (
        Device("d1", partition="0/4"),
        Device("d2", partition="1/4"),
        Device("odd", partition="2/4"),
        Device("tight", partition="3/4", starts=False, options=("--state", str(disk))),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(offered))
        folder = tmp_path_factory.mktemp("misbehaving") / "fleet"
        async with Federation(folder, devices=devices) as started:
            yield started


def installed(folder: Path) -> Path:
    """Return a folder that offers the odd model as an installed package does."""
    shutil.copy(str(odd_model.__file__), folder)
    metadata = folder / "odd_model-1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: odd-model\nVersion: 1\n")
    (metadata / "entry_points.txt").write_text("[trellis.models]\nodd = odd_model:MODEL\n")
    return folder


async def test_an_update_that_cannot_be_averaged_is_dropped_and_named(fleet: Federation) -> None:
    six: dict[str, Any] = {"model": {"name": "odd"}, "train": {"rounds": 6}, "participants": {"quorum": 0.6}}
    await fleet.submit("odd", **six)
    view = await fleet.ended("odd")
    assert [(one["selected"], one["replied"], one["failed"]) for one in view["history"]] == [(3, 2, 1)] * 6
    outcomes = [
        {one["device"]: (one["outcome"], one["reason"]) for one in record["outcomes"]}
        for record in view["history"]
    ]
    good = {"d1": ("replied", None), "d2": ("replied", None)}
    assert outcomes == [{**good, "odd": ("failed", reason)} for reason in MISDEEDS.values()]

    logs = await fleet.operator("logs", "odd", "--device", "odd")
    assert logs.code == 0, logs
    assert "in fall_apart" in logs.out, "where it happened can be read from afar"
    assert "RuntimeError: a gear is missing" in logs.out

    assert await fleet.devices["odd"].stop() == 0
    await fleet.submit("even", **six | {"participants": {"minimum": 2}})
    await fleet.ended("even")
    assert greatest_difference(await fleet.model("even"), await fleet.model("odd")) == 0


async def test_a_device_whose_disk_is_full_says_so_and_takes_part_once_there_is_room(
    fleet: Federation, disk: Path
) -> None:
    fleet.devices["tight"].start()
    await fleet.all_online()
    fill(disk)
    many: dict[str, Any] = {"train": {"rounds": 500}, "participants": {"minimum": 2, "quorum": 0.6}}
    await fleet.submit("roomy", **many)
    await refused_for_its_disk(fleet)
    await the_others_go_on(fleet)
    free(disk)
    await fleet.until("roomy", takes_part, "it takes part")
    fill(disk)  # now in mid-task
    await refused_for_its_disk(fleet)
    await the_others_go_on(fleet)
    free(disk)
    await fleet.until("roomy", takes_part, "it takes part again")
    assert (await fleet.operator("task", "cancel", "roomy")).code == 0
    await fleet.mqtt.field(fleet.execution("tight", "roomy"), "state", "CANCELED")
    assert fleet.devices["tight"].running


async def refused_for_its_disk(fleet: Federation) -> None:
    topic = fleet.execution("tight", "roomy")
    await fleet.mqtt.field(topic, "state", "REJECTED")
    reason = fleet.mqtt.latest[topic]["reason"]
    assert reason["code"] == "disk"
    assert "free space there" in reason["message"]


async def the_others_go_on(fleet: Federation) -> None:
    done = len((await fleet.view("roomy"))["history"])
    view = await fleet.rounds_done("roomy", done + 3)
    assert not takes_part(view)


def takes_part(view: dict[str, Any]) -> bool:
    """Whether the device with the small disk has replied in the last round."""
    last = view["history"][-1]["outcomes"]
    return any(one["device"] == "tight" and one["outcome"] == "replied" for one in last)
