"""A whole Trellis federation for a benchmark: broker, server, gateway and devices, each a real process.

    with Federation(devices=2) as fleet:
        fleet.run_task("task", rounds=5)
        seconds = fleet.round_seconds("task")

Plain connections on loopback, one region, the benchmarks' model and data. Where the wire is to be counted,
devices reach broker and front through proxies.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import workload
from fleet import Fleet
from ground import Process

from trellis.loopback import free_ports

REGION = "eu-1"


class Federation(Fleet):
    """One federation from `__enter__`, where all are online, to `__exit__`, where nothing is left.

    Args:
        devices: How many; each has a file of its own.
        source: The NPZ file that their samples come from; None takes MNIST if it is there, else random ones.
        counted: Put proxies that count between the devices and the others.
        environment: Variables that all processes get.
    """

    def __init__(
        self,
        *,
        devices: int,
        source: Path | None = None,
        counted: bool = False,
        environment: dict[str, str] | None = None,
    ) -> None:
        super().__init__([REGION], counted=counted, environment=environment)
        self._files = workload.write_data(self.ground.folder, devices, source)
        (gateway,) = free_ports(1)
        self.gateway_url = f"http://127.0.0.1:{gateway}"
        self.server = self.server_process(self.broker_url)
        own = ("--region", REGION, "--api-port", str(gateway), "--server", self.server_url)
        self.gateway = self.member("gateway", "gateway", *own, broker_url=self.broker_url)
        self.devices: list[Process] = []

    def start(self) -> Sequence[str]:
        """Start all but the broker; return the topics on which they say that they are online."""
        self.server.start()
        self.gateway.start()
        self.devices = [self._device(index, file).start() for index, file in enumerate(self._files)]
        return [f"{REGION}/gateway/state", *map(device_topic, range(len(self.devices)))]

    @property
    def processes(self) -> Sequence[Process]:
        """All of them that must not end by themselves."""
        return [self.broker, self.server, self.gateway, *self.devices]

    def descriptor(self) -> dict[str, Any]:
        """Return what all tasks have alike."""
        return {
            "model": {"name": workload.MODEL},
            "data": {"name": workload.DATA_NAME, "shape": list(workload.SHAPE), "classes": workload.CLASSES},
            "train": {
                "local_epochs": 1,
                "batch_size": workload.BATCH,
                "learning_rate": workload.LEARNING_RATE,
                "seed": workload.SEED,
            },
            "participants": {"minimum": len(self.devices), "quorum": 1.0, "deadline_s": 120.0},
        }

    def _device(self, index: int, file: Path) -> Process:
        own = ("--name", f"d{index}", "--region", REGION, "--server", self.counted_front)
        data = ("--data", f"{workload.DATA_NAME}={file}")
        return self.member(f"device-{index}", "device", *own, *data, broker_url=self.counted_broker_url)


def device_topic(index: int) -> str:
    """Return the topic of a device's state, without the base."""
    return f"{REGION}/devices/d{index}/state"


def execution_topic(index: int, task: str) -> str:
    """Return the topic of a task's execution on a device, without the base."""
    return f"{REGION}/devices/d{index}/tasks/{task}/execution"
