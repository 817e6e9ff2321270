"""Tasks that meet: several at once, late devices, and devices that a task does not fit."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
from federation import Device, Federation

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(400)]

DEVICES = (
    Device("d1", "eu-1", partition="0/4"),
    Device("d2", "eu-1", partition="1/4"),
    Device("late", "eu-1", partition="2/4", starts=False),
    Device("d3", "us-1", partition="3/4"),
    # 71 samples: too few for a task that asks for 100.
    Device("tiny", "us-1", partition="0/20"),
    # Its own data is 12×12 pixels.
    Device("wide", "us-1", data="digits=wide.npz", partition="0/1"),
    # Its labels run to 11, and a sensor of its has failed.
    Device("odd", "eu-1", data="digits=odd.npz", partition="0/1"),
)
FIT = ("d1", "d2", "d3")
FOR_THREE: dict[str, Any] = {"participants": {"minimum": 3}, "data": {"min_samples": 100}}
"""What only the three that fit take part in."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fleet(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Federation]:
    made = Federation(tmp_path_factory.mktemp("many") / "fleet", devices=DEVICES, gated=True)
    rng = np.random.default_rng(7)
    np.savez(
        made.folder / "wide.npz",
        x=rng.random((200, 1, 12, 12), dtype=np.float32),
        y=rng.integers(0, 10, 200),
    )
    x = rng.random((240, 1, 8, 8), dtype=np.float32)
    x[5, 0, 3, 3] = np.nan
    np.savez(made.folder / "odd.npz", x_train=x, y_train=np.arange(240) % 12)
    async with made as started:
        yield started


async def test_a_device_whose_data_does_not_fit_says_why_and_the_others_go_on(fleet: Federation) -> None:
    await fleet.submit("picky", **FOR_THREE)
    reasons = {}
    for device in ("tiny", "wide", "odd"):
        await fleet.mqtt.field(fleet.execution(device, "picky"), "state", "REJECTED")
        reasons[device] = fleet.mqtt.latest[fleet.execution(device, "picky")]["reason"]
    assert "71" in reasons["tiny"]["message"] or "72" in reasons["tiny"]["message"]
    assert "100" in reasons["tiny"]["message"]
    assert "12" in reasons["wide"]["message"]
    assert "labels run from 0 to 11, the task wants 0 to 9" in reasons["odd"]["message"]
    assert "1 samples hold NaN or infinity, the first is number 5" in reasons["odd"]["message"]
    view = await fleet.ended("picky")
    assert {one["replied"] for one in view["history"]} == {3}
    shown = await fleet.operator("task", "show", "picky")
    assert shown.code == 0, shown
    for device, reason in reasons.items():
        for line in reason["message"].split("\n  - "):  # one for each fault
            assert line in shown.out, "the operator sees it"
            assert line in fleet.devices[device].said(), "and so does who stands before the device"


async def test_tasks_that_want_the_same_devices_queue_and_all_succeed(fleet: Federation) -> None:
    held = fleet.hold_update("d1", "first", 1)
    await fleet.submit("first", **FOR_THREE)
    for device in FIT:
        await fleet.mqtt.once(fleet.execution(device, "first"), "state", "IN_PROGRESS")
    await fleet.submit("second", train={"rounds": 1}, **FOR_THREE)
    for device in FIT:
        await fleet.mqtt.once(fleet.execution(device, "second"), "state", "QUEUED")
    held.release()
    await fleet.ended("first")
    await fleet.ended("second")
    for device in FIT:
        assert fleet.mqtt.said(fleet.execution(device, "second"), "state")[0] == "QUEUED"
        await fleet.mqtt.field(fleet.execution(device, "first"), "state", "SUCCEEDED")
        await fleet.mqtt.field(fleet.execution(device, "second"), "state", "SUCCEEDED")


async def test_the_same_task_at_two_gateways_and_twice_at_one_is_one_task(fleet: Federation) -> None:
    file = fleet.task("twice", **FOR_THREE)
    signed = await fleet.ground.command("task", "sign", file, "--keys", "keys", "-o", "signed.json")
    assert signed.code == 0, signed
    gateways = [part for url in fleet.gateway_urls.values() for part in ("--gateway", url)]
    ran = await fleet.operator("task", "run", "signed.json", "--no-watch")
    assert ran.code == 0, ran
    again = await fleet.operator("task", "post", "signed.json", *gateways)
    assert again.code == 0, again
    view = await fleet.ended("twice")
    assert (view["revision"], len(view["history"])) == (1, 2)
    attempts = {device: fleet.mqtt.said(fleet.execution(device, "twice"), "attempt") for device in FIT}
    assert attempts == {"d1": [1], "d2": [1], "d3": [1]}


async def test_a_device_that_starts_later_finds_the_task_and_takes_part_from_the_next_round(
    fleet: Federation,
) -> None:
    await fleet.submit("patient", train={"rounds": 500, "local_epochs": 60}, **FOR_THREE)
    await fleet.rounds_done("patient", 1)
    fleet.devices["late"].start()
    view = await fleet.until(
        "patient", lambda one: bool(one["history"]) and one["history"][-1]["replied"] == 4, "four replied"
    )
    assert view["history"][0]["replied"] == 3
    first = next(one["round"] for one in view["history"] if one["replied"] == 4)
    assert all(one["replied"] == 4 for one in view["history"] if one["round"] >= first)
    assert (await fleet.operator("task", "cancel", "patient")).code == 0
    await fleet.ended("patient", "canceled")
    for device in (*FIT, "late"):
        await fleet.mqtt.field(fleet.execution(device, "patient"), "state", "CANCELED")


async def test_a_task_posted_while_a_device_is_off_waits_for_it(fleet: Federation) -> None:
    if fleet.devices["late"].running:
        assert await fleet.devices["late"].stop() == 0
    await fleet.submit("waiting", participants={"minimum": 4}, data={"min_samples": 100})
    for device in FIT:
        await fleet.mqtt.field(fleet.execution(device, "waiting"), "phase", "waiting")
    await fleet.until("waiting", lambda one: one["state"] == "gathering", "gathering")
    fleet.devices["late"].start()
    view = await fleet.ended("waiting")
    assert {one["replied"] for one in view["history"]} == {4}
