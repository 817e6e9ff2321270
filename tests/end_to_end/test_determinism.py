"""The same task on the same devices gives the same model, whoever comes first and in whatever process."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from federation import Device, Federation
from tensors_apart import greatest_difference

pytestmark = pytest.mark.timeout(400)

DEVICES = (Device("d1", "eu-1"), Device("d2", "eu-1"), Device("d3", "us-1"))


async def trained(fleet: Federation, task: str, *, held: str) -> tuple[Path, list[str]]:
    """Train, the update of `held` being held in the first round until all others have uploaded.

    Returns the model's file and the devices in the order in which their first updates arrived.
    """
    others = [device.name for device in DEVICES if device.name != held]
    # The reply to its check-in passes, its first update does not.
    update = fleet.gate.hold(fleet.devices[held], "push-messages", count=2)
    await fleet.submit(task, model={"name": "mlp"}, train={"rounds": 2, "local_epochs": 40})
    await update.arrived()
    for other in others:
        await fleet.mqtt.field(fleet.execution(other, task), "phase", "uploaded")
    update.release()
    await fleet.ended(task)
    first_uploads = {
        device: next(
            heard.at
            for heard in fleet.mqtt.heard
            if heard.topic == fleet.execution(device, task)
            and (heard.payload or {}).get("phase") == "uploaded"
        )
        for device in fleet.specs
    }
    return await fleet.model(task), sorted(first_uploads, key=lambda device: first_uploads[device])


async def restarted(fleet: Federation) -> None:
    """Start everybody who computes anew."""
    leaving = {fleet.specs[name].path: device for name, device in fleet.devices.items()}
    leaving["central"] = fleet.server
    assert set(await asyncio.gather(*(one.stop() for one in leaving.values()))) == {0}
    for path in leaving:
        await fleet.mqtt.field(f"{path}/state", "state", "offline")
    for one in leaving.values():
        one.start()
    await fleet.all_online()


@pytest.mark.long
async def test_the_same_task_gives_the_same_model_although_updates_arrive_in_another_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Interpreters of their own, with other hashes of strings and other random states: nothing hangs on those.
    monkeypatch.setenv("PYTHONHASHSEED", "1")
    async with Federation(tmp_path / "fleet", devices=DEVICES, gated=True, cold=True) as fleet:
        one, order = await trained(fleet, "one", held="d1")
        monkeypatch.setenv("PYTHONHASHSEED", "2")
        await restarted(fleet)
        other, other_order = await trained(fleet, "other", held="d3")
        assert order[-1] == "d1"
        assert other_order[-1] == "d3"
        assert greatest_difference(one, other) <= 1e-6
