"""What the demo is to do: names, data and the task, worked out before anything starts."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trellis.descriptor import TaskDescriptor, parse_mapping
from trellis.descriptor_tiers import Tier
from trellis.errors import ConfigError, DataError, Fault
from trellis.identifiers import replica_names
from trellis.tier.strategies import STRATEGY_RULES

TASK = "demo"
FEW = 8
"""Up to so many devices are each a process; more share one process for each region."""
_REGIONS = ("eu-1", "us-1", "ap-1", "sa-1", "af-1", "oc-1")
_DIGITS_SAMPLES = 1437

# What numpy raises for a file that is empty, no archive, an archive of other things, or a bare array.
_UNREADABLE = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, TypeError, AttributeError)


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
    data: str,
    model: str | None,
    strategy: str,
    split: str,
    tier: Tier = "regional",
    backends: Sequence[str] = (),
) -> DemoPlan:
    """Return the plan that these options make.

    Raises:
        ConfigError: There are fewer devices than regions, or than backends.
        DataError: The data cannot be read.
    """
    if devices < regions:
        problem = f"{devices} are fewer than the {regions} regions"
        raise ConfigError("demo", [Fault("devices", problem, "give every region a device")])
    if devices < len(backends):
        problem = f"{devices} are fewer than the {len(backends)} backends"
        raise ConfigError("demo", [Fault("devices", problem, "give every backend a device")])
    names = tuple(_REGIONS[n] if n < len(_REGIONS) else f"region-{n + 1}" for n in range(regions))
    found = describe(data)
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
    return DemoPlan(found, names, members, processes, model or found.model, rounds, strategy, split, tier)


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


def describe(source: str) -> DemoData:
    """Return what `source`, `digits` or `[NAME=]PATH`, holds.

    Raises:
        DataError: It cannot be read, or is neither NPZ file nor folder of IDX files.
    """
    if source == "digits":
        return DemoData("digits", "digits", (1, 8, 8), 10, _DIGITS_SAMPLES)
    given, equals, text = source.partition("=")
    path = Path(text if equals else source).resolve()
    name = given if equals else path.stem
    what = f"data {source!r}"
    if path.is_dir():
        # A folder of IDX files is MNIST or one of its many likenesses; devices check it against the task.
        return DemoData(f"{name}={path}", name, (1, 28, 28), 10, 60_000)
    try:
        with np.load(path, allow_pickle=False) as stored:
            x, y = (stored[key] for key in (("x_train", "y_train") if "x_train" in stored else ("x", "y")))
    except _UNREADABLE as error:
        raise DataError(what, f"is no NPZ file with x_train and y_train, or x and y: {error}") from None
    if x.ndim < 2 or not y.size:
        raise DataError(what, f"has x of shape {x.shape}, (samples, …) is due")
    # Pictures without a channel axis, (samples, height, width), get one: as `trellis device` reads them.
    shape = (1, *x.shape[1:]) if x.ndim == 3 and x.dtype == np.uint8 else tuple(x.shape[1:])
    return DemoData(f"{name}={path}", name, shape, int(y.max()) + 1, len(x))
