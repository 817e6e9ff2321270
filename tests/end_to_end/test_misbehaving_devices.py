"""Devices that train badly, whose disk is full, or that lack something: it harms nobody else, and is told."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import odd_model
import pytest
import pytest_asyncio
from federation import Device, Federation
from members import ROOT, Machine
from model_package import installed
from python_without import python_without
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
    offered = installed(odd_model, tmp_path_factory.mktemp("package"))
    torchless = python_without(tmp_path_factory.mktemp("torchless"), "torch")
    devices = (
        Device("d1", partition="0/4"),
        Device("d2", partition="1/4"),
        Device("odd", partition="2/4"),
        Device("tight", partition="3/4", starts=False, options=("--state", str(disk))),
        # The package of the odd model is not installed there, though torch is.
        Device(
            "plain", partition="0/8", starts=False, machine=Machine(environment={"PYTHONPATH": str(ROOT)})
        ),
        Device(
            "bare",
            partition="1/8",
            starts=False,
            machine=Machine(python=torchless),
            options=("--backend", "torch"),
        ),
        Device("lettered", data="letters=letters.npz", partition="0/1", starts=False),
        Device("empty", data="digits=nowhere.npz", partition="0/1", starts=False),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(offered))
        folder = tmp_path_factory.mktemp("misbehaving") / "fleet"
        made = Federation(folder, devices=devices)
        x = np.random.default_rng(7).random((60, 1, 8, 8), dtype=np.float32)
        np.savez(folder / "letters.npz", x=x, y=np.arange(60) % 10)
        async with made as started:
            yield started


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

    # Where it happened can be read from afar.
    due = ("in fall_apart", "RuntimeError: a gear is missing")
    await fleet.logs("odd", "--device", "odd", saying=due)

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
    many: dict[str, Any] = {"train": {"rounds": 5000}, "participants": {"minimum": 2, "quorum": 0.6}}
    await fleet.submit("roomy", **many)
    await refused_for_its_disk(fleet)
    await the_others_go_on(fleet)
    free(disk)
    await fleet.until("roomy", takes_part, "it takes part")
    await fleet.mqtt.field(fleet.execution("tight", "roomy"), "state", "IN_PROGRESS")
    fill(disk)  # now in mid-task
    await refused_for_its_disk(fleet)
    await the_others_go_on(fleet)
    free(disk)
    await fleet.until("roomy", takes_part, "it takes part again")
    assert (await fleet.operator("task", "cancel", "roomy")).code == 0
    await fleet.mqtt.field(fleet.execution("tight", "roomy"), "state", "CANCELED")
    assert await fleet.devices["tight"].stop() == 0


async def test_a_device_that_lacks_the_model_the_extra_or_the_data_is_rejected_and_says_what_is_missing(
    fleet: Federation,
) -> None:
    lacking = {
        "plain": ("model", "model 'odd' is not known here, known are "),
        "bare": (
            "extra",
            "backend 'torch' is not installed here, installed: ",
        ),
        "lettered": ("data", "data.name: holds 'letters', the task wants 'digits'"),
    }
    for device in (*lacking, "empty"):
        fleet.devices[device].start()
    fleet.devices["empty"].wanted = False
    assert await fleet.devices["empty"].ended(within_s=120) == 2
    assert "nowhere.npz': no such file or folder" in fleet.devices["empty"].said()
    await fleet.all_online()
    # Without this one there are too few: the task waits until the server knows who lacks what.
    fleet.devices["d2"].pause()
    await fleet.submit("geared", model={"name": "odd"}, participants={"minimum": 2, "quorum": 0.6})
    await fleet.until("geared", lambda view: rejected(view) == set(lacking), "all who lack something say so")
    fleet.devices["d2"].resume()
    view = await fleet.ended("geared")
    outcomes = [{one["device"]: one["outcome"] for one in each["outcomes"]} for each in view["history"]]
    assert [one["d1"] + one["d2"] for one in outcomes] == ["repliedreplied"] * 2, "the others go on"
    shown = await fleet.operator("task", "show", "geared")
    assert shown.code == 0, shown
    for device, (code, message) in lacking.items():
        assert all(device not in one for one in outcomes)
        topic = fleet.execution(device, "geared")
        await fleet.mqtt.field(topic, "state", "REJECTED")
        reason = fleet.mqtt.latest[topic]["reason"]
        assert (reason["code"], message in reason["message"]) == (code, True), reason
        assert fleet.devices[device].running
        (line,) = [line for line in shown.out.splitlines() if f"eu-1/{device} " in line]
        assert "REJECTED" in line
        for told in reason["message"].split("\n  - "):
            assert told in shown.out, "the operator sees it"
            assert told in fleet.devices[device].said(), "and so does who stands before the device"


def rejected(view: dict[str, Any]) -> set[str]:
    """Return the devices that have rejected a task."""
    return {one["device"] for one in view["devices"] if one["state"] == "REJECTED"}


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
