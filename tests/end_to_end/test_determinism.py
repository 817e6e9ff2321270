"""The same task on the same devices gives the same model, whoever comes first."""

from __future__ import annotations

from pathlib import Path

import pytest
from federation import Device, Federation
from tensors_apart import greatest_difference

pytestmark = pytest.mark.timeout(400)

DEVICES = (Device("d1", "eu-1"), Device("d2", "eu-1"), Device("d3", "us-1"))


async def trained(folder: Path, *, held: str) -> tuple[Path, list[str]]:
    """Train on a fresh federation, `held` being held in the first round until all others have uploaded.

    Returns the model's file and the devices in the order in which their first updates arrived.
    """
    others = [device.name for device in DEVICES if device.name != held]
    async with Federation(folder / "fleet", devices=DEVICES) as fleet:
        task = {"model": {"name": "mlp"}, "train": {"rounds": 2, "local_epochs": 40}}
        await fleet.submit("same", **task)
        await fleet.mqtt.field(fleet.execution(held, "same"), "phase", "training")
        fleet.devices[held].pause()
        for other in others:
            await fleet.mqtt.field(fleet.execution(other, "same"), "phase", "uploaded")
        fleet.devices[held].resume()
        await fleet.ended("same")
        first_uploads = {
            device: next(
                heard.at
                for heard in fleet.mqtt.heard
                if heard.topic == fleet.execution(device, "same")
                and (heard.payload or {}).get("phase") == "uploaded"
            )
            for device in fleet.specs
        }
        return (await fleet.model("same")).rename(folder / "model.safetensors"), sorted(
            first_uploads, key=lambda device: first_uploads[device]
        )


async def test_the_same_task_gives_the_same_model_although_updates_arrive_in_another_order(
    tmp_path: Path,
) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "other").mkdir()
    one, order = await trained(tmp_path / "one", held="d1")
    other, other_order = await trained(tmp_path / "other", held="d3")
    assert order[-1] == "d1"
    assert other_order[-1] == "d3"
    assert greatest_difference(one, other) <= 1e-6
