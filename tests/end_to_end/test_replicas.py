"""`trellis device --replicas`: two regions of five devices, each region one process, in a federation."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest
from federation import Device, Federation

pytestmark = pytest.mark.timeout(300)

REGIONS = {"eu-1": "east", "us-1": "west"}
NAMES = {region: [f"{name}-{number}" for number in range(1, 6)] for region, name in REGIONS.items()}


async def started(fleet: Federation) -> None:
    for member in fleet.devices.values():
        member.start()
    for region, names in NAMES.items():
        for name in names:
            await fleet.mqtt.field(f"{region}/devices/{name}/state", "state", "online", within_s=150)


async def test_replicas_are_devices_like_others_and_a_rejected_one_stands_alone(tmp_path: Path) -> None:
    devices = tuple(
        Device(name, region, partition=f"{5 * n}/10", starts=False, options=("--replicas", "5"))
        for n, (region, name) in enumerate(REGIONS.items())
    )
    async with Federation(tmp_path / "fleet", devices=devices) as fleet:
        await started(fleet)
        # 1437 digits in ten parts: seven of 144 samples and three of 143, which are too few here.
        for task, least, count in (("all", 143, 10), ("most", 144, 7)):
            await fleet.submit(
                task,
                data={"min_samples": least},
                train={"local_steps": 5},
                participants={"minimum": count},
            )
            view = await fleet.ended(task)
            assert [(one["selected"], one["replied"]) for one in view["history"]] == [(count, count)] * 2
        samples = {
            (region, name): fleet.mqtt.latest[f"{region}/devices/{name}/tasks/all/execution"]["samples"]
            for region, names in NAMES.items()
            for name in names
        }
        assert sorted(samples.values()) == [143] * 3 + [144] * 7
        assert sum(samples.values()) == 1437
        for (region, name), held in samples.items():
            topic = f"{region}/devices/{name}/tasks/most/execution"
            await fleet.mqtt.field(topic, "state", "SUCCEEDED" if held == 144 else "REJECTED")
        await _each_speaks_for_itself(fleet)
        # Nothing of Flower's is shared: every device was a node of its own.
        nodes = {
            one.payload["flower"]["node_id"]
            for one in fleet.mqtt.heard
            if one.topic.endswith("/tasks/all/execution") and (one.payload or {}).get("flower")
        }
        assert len(nodes) == 10
        threads = [psutil.Process(member.pid).num_threads() for member in fleet.devices.values()]
        assert max(threads) < 60, threads
    # On leaving, SIGTERM ended both with 0, and no process, port or file is left.


async def _each_speaks_for_itself(fleet: Federation) -> None:
    """Every device wrote once that it trained in round 1: its own line, and no other's."""

    def trained(region: str, name: str, number: int) -> int:
        topic = f"{region}/devices/{name}/tasks/all/log"
        said = [one.payload["message"] for one in fleet.mqtt.heard if one.topic == topic and one.payload]
        return sum(line.startswith(f"round {number}: trained on") for line in said)

    for device in ((region, name) for region, names in NAMES.items() for name in names):
        # A round later: nothing that was said of round 1 is under way.
        await fleet.mqtt.until(lambda device=device: trained(*device, 2) > 0, f"{device} says it of round 2")
        assert trained(*device, 1) == 1, device
    said = fleet.devices["east"].said()
    assert "device_agent.client_app: east-4: round 1: trained on" in said
