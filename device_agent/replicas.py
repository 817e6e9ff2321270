"""Many devices in one process, for load tests and simulation.

Each has an identity, a journal, a part of the data, an MQTT session and a Flower node of its own, as if it
were alone. They share the interpreter, the data set that is cut into their parts, and the processors.
"""

from __future__ import annotations

import asyncio
import logging
import resource
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path

import psutil

from device_agent.settings import DataSource, DeviceSettings
from models.datasets import Dataset, load
from models.datasets.partition import cut
from trellis.errors import ConfigError, DataError, Fault, TrellisError, leaves
from trellis.keys.files import present

logger = logging.getLogger(__name__)

FILES_EACH = 10
"""A journal's two, a broker's and a server's connection, and what is open for a moment."""
FILES_SHARED = 200

RunDevice = Callable[[DeviceSettings, Dataset], Awaitable[None]]
"""Runs one device until all are told to stop."""


def require_keys(keys: Path, region: str, name: str, names: Sequence[str]) -> None:
    """Pass if every replica has a certificate below `keys`, the folder of all keys.

    Raises:
        ConfigError: Some have none.
    """
    missing = [one for one in names if not present(keys / "devices" / region / one / "tls.crt")]
    if missing:
        raise ConfigError(
            f"keys in {keys}",
            f"{len(missing)} of {len(names)} replicas have no certificate, the first is {missing[0]!r}: make "
            f"them with 'trellis keys device {name} --region {region} --replicas {len(names)}'",
        )


def shared_out(source: DataSource, count: int) -> list[DataSource]:
    """Return each replica's source: parts of the whole, or as many in a row from the part in `source`.

    Raises:
        ConfigError: There are not so many parts from there on.
    """
    first, parts = source.partition or (0, count)
    if first + count > parts:
        problem = f"{first}/{parts} came, and {count} replicas take parts {first} to {first + count - 1}"
        raise ConfigError("options", [Fault("partition", problem, f"such as {first}/{first + count}")])
    return [replace(source, partition=(first + number, parts)) for number in range(count)]


def own_parts(sources: Sequence[DataSource]) -> list[Dataset]:
    """Return the parts of one data set that `sources` name; it is read and cut once.

    Raises:
        DataError: It cannot be read, or holds too few samples.
    """
    whole = load(sources[0].source, split="train")
    datasets = []
    chosen = None
    for source in sources:
        if source.partition is None:
            raise ValueError(f"{source} names no part")
        index, parts = source.partition
        if chosen is None:
            chosen = cut(whole, parts, split=source.split, seed=source.split_seed)
        datasets.append(whole.take(chosen[index]))
    if not all(len(part) for part in datasets):
        raise DataError(f"data set {sources[0].source!r}", f"leaves some of {len(sources)} parts empty")
    return datasets


def default_train_threads(threads: int) -> int:
    """Return how many devices train at a time where each uses `threads` processors."""
    return max(1, (psutil.cpu_count() or 1) // max(1, threads))


def allow_open_files(count: int) -> None:
    """Let this process open what `count` devices need.

    Raises:
        ConfigError: The system does not allow it.
    """
    due = FILES_SHARED + FILES_EACH * count
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < due:
        if hard != resource.RLIM_INFINITY and hard < due:
            problem = f"{count} devices open up to {due} files, this system allows {hard}"
            raise ConfigError("options", [Fault("replicas", problem, "raise `ulimit -Hn`, or start fewer")])
        resource.setrlimit(resource.RLIMIT_NOFILE, (due, hard))


async def run_replicas(members: Sequence[tuple[DeviceSettings, Dataset]], run_device: RunDevice) -> None:
    """Run all of them to their end; one that fails ends alone.

    Raises:
        TrellisError: Some had failed; if all have, what the first one raised.
    """
    failures: dict[str, BaseException] = {}

    async def run(settings: DeviceSettings, data: Dataset) -> None:
        try:
            await run_device(settings, data)
        except Exception as error:  # whatever it is, the others go on
            first = failures[settings.name] = next(iter(leaves(error)))
            ours = isinstance(first, TrellisError)
            logger.error("device %s has ended: %s", settings.name, first, exc_info=None if ours else error)

    async with asyncio.TaskGroup() as group:
        for settings, data in members:
            group.create_task(run(settings, data), name=f"device {settings.name}")
    if not failures:
        return
    name, error = next(iter(failures.items()))
    if len(failures) == len(members) and isinstance(error, TrellisError):
        raise error
    raise TrellisError(
        f"{len(failures)} of {len(members)} devices have failed, the first was {name}: {error}"
    )
