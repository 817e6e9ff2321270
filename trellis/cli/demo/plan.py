"""What the demo is to do: names, data and the task, worked out before anything starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from trellis.descriptor import TaskDescriptor, parse_mapping
from trellis.descriptor_tiers import Tier
from trellis.errors import ConfigError, Fault
from trellis.identifiers import replica_names
from trellis.tier.strategies import STRATEGY_RULES

TASK = "demo"
FEW = 8
"""Up to so many devices are each a process; more share one process for each region."""
_REGIONS = ("eu-1", "us-1", "ap-1", "sa-1", "af-1", "oc-1")


@dataclass(frozen=True)
class DemoData:
    """The data that all devices share out.

    Attributes:
        source: As `--data` of the other commands takes it.
        name: What the task calls it.
        shape: Of one sample, channels first.
    """

    source: str
    name: str
    shape: tuple[int, ...]
    classes: int
    samples: int

    @property
    def model(self) -> str:
        """The model to train unless another is asked for."""
        return "lenet5" if self.shape == (1, 28, 28) else "mlp"


@dataclass(frozen=True)
class DemoDevice:
    """One device."""

    name: str
    region: str


@dataclass(frozen=True)
class DemoProcess:
    """What one `trellis device` is started with: a device's name or its replicas', and part of the data.

    Attributes:
        backend: What it trains with, in an environment of its own; None: what is installed here.
    """

    name: str
    region: str
    partition: str
    replicas: int | None = None
    backend: str | None = None


@dataclass(frozen=True)
class DemoPlan:
    """A whole demo."""

    data: DemoData
    regions: tuple[str, ...]
    devices: tuple[DemoDevice, ...]
    processes: tuple[DemoProcess, ...]
    model: str
    rounds: int
    strategy: str
    split: str
    tier: Tier

    def devices_of(self, region: str) -> int:
        """Return how many devices a region has."""
        return sum(device.region == region for device in self.devices)

    def task(self, front_port: int) -> TaskDescriptor:
        """Return the task, for a server whose Flower front listens on `front_port` of this machine.

        Raises:
            DescriptorError: An option does not fit a task.
        """
        small = self.data.samples < 10_000
        value: dict[str, Any] = {
            "task": TASK,
            "regions": list(self.regions),
            "server": {"address": f"127.0.0.1:{front_port}", "tls": False},
            "model": {"name": self.model},
            "data": {"name": self.data.name, "shape": list(self.data.shape), "classes": self.data.classes},
            # Tried on digits in 4 parts: 96 to 98 % after ten rounds, 95 % with dirichlet:0.3.
            "train": {
                "rounds": self.rounds,
                "local_epochs": 2 if small else 1,
                "batch_size": 16 if small else 32,
                "learning_rate": 0.05,
                "momentum": 0.9,
                "seed": 42,
            },
            "strategy": {"name": self.strategy},
            "participants": self._all_of(len(self.devices)),
            "aggregation": self._aggregation(),
            "evaluate": {"on": ["server", "devices"], "every": 1},
        }
        return parse_mapping(value, rules=STRATEGY_RULES)

    def _aggregation(self) -> dict[str, Any]:
        if self.tier == "central":
            return {"tier": "central"}
        regions = {
            region: {"tier": "regional", "participants": self._all_of(self.devices_of(region))}
            for region in self.regions
        }
        return {"tier": "regional", "participants": self._all_of(len(self.regions)), "regions": regions}

    def _all_of(self, count: int) -> dict[str, Any]:
        everybody = {"minimum": count, "maximum": max(100, count)}
        # Devices without PyTorch gather once the server has exported the model, which takes it half a minute.
        return everybody | ({"deadline_s": 300.0} if any(one.backend for one in self.processes) else {})


def plan_demo(
    *,
    regions: int,
    devices: int,
    rounds: int,
    data: DemoData,
    model: str | None,
    strategy: str,
    split: str,
    tier: Tier = "regional",
    backends: Sequence[str] = (),
) -> DemoPlan:
    """Return the plan that these options make.

    Raises:
        ConfigError: There are fewer devices than regions, or than backends.
    """
    if devices < regions:
        problem = f"{devices} are fewer than the {regions} regions"
        raise ConfigError("demo", [Fault("devices", problem, "give every region a device")])
    if devices < len(backends):
        problem = f"{devices} are fewer than the {len(backends)} backends"
        raise ConfigError("demo", [Fault("devices", problem, "give every backend a device")])
    names = tuple(_REGIONS[n] if n < len(_REGIONS) else f"region-{n + 1}" for n in range(regions))
    homes = [names[n * regions // devices] for n in range(devices)]
    trained_by = [backends[n % len(backends)] if backends else None for n in range(devices)]
    if devices > FEW:
        members, processes = _shared(homes, trained_by)
    else:
        members = tuple(DemoDevice(f"cam-{n + 1}", home) for n, home in enumerate(homes))
        processes = tuple(
            DemoProcess(one.name, one.region, f"{n}/{devices}", backend=trained_by[n])
            for n, one in enumerate(members)
        )
    return DemoPlan(data, names, members, processes, model or data.model, rounds, strategy, split, tier)


def _shared(
    homes: Sequence[str], trained_by: Sequence[str | None]
) -> tuple[tuple[DemoDevice, ...], tuple[DemoProcess, ...]]:
    """Return the devices of these regions and backends, and one process for each region and backend."""
    devices: list[DemoDevice] = []
    processes: list[DemoProcess] = []
    kinds = list(zip(homes, trained_by, strict=True))
    for region, backend in dict.fromkeys(kinds):
        count = kinds.count((region, backend))
        name = f"cam-{backend}" if backend else "cam"
        processes.append(DemoProcess(name, region, f"{len(devices)}/{len(homes)}", count, backend))
        devices += [DemoDevice(replica, region) for replica in replica_names(name, count)]
    return tuple(devices), tuple(processes)
