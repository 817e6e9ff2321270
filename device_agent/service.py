"""Puts a device together from its options, and runs it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from pathlib import Path

from device_agent.agent import DeviceAgent
from device_agent.journal import Journal
from device_agent.participation import Device, LinkFactory
from device_agent.presence import Self, describe
from device_agent.replicas import (
    allow_open_files,
    default_train_threads,
    own_parts,
    require_keys,
    run_replicas,
    shared_out,
)
from device_agent.settings import SUPERNODE, DataSource, DeviceSettings
from device_agent.turns import Turns
from models.backends import AUTO, artefact_runtime, available_backends, resolve_backend
from models.datasets import Dataset, load
from models.datasets.partition import parse_partition, parse_split, partition
from trellis.errors import ConfigError, DataError, Fault
from trellis.flower.link_loop import Link, Pace
from trellis.identifiers import replica_names
from trellis.keys.expiry import reminding
from trellis.keys.files import present
from trellis.keys.identity import Identity, find_identity, load_keyring
from trellis.memory import give_back_free_memory
from trellis.mqtt import Birth, MqttBus, Publication
from trellis.payloads import now_ms
from trellis.topics import Topics


@dataclass(frozen=True)
class Options:
    """What was typed, or came from the environment or `trellis.toml`.

    Attributes:
        state: The device's folder; with `replicas` the one that holds a folder for each.
        replicas: How many devices the process is, named `name-1` and so on; None is one, named `name`.
        train_threads: How many of them train at a time; None leaves it to the number of processors.
    """

    name: str
    region: str
    data: str
    keys: Path
    broker: str
    servers: tuple[str, ...]
    partition: str | None
    split: str
    split_seed: int
    backend: str
    threads: int
    artefact_mb: int
    keepalive: int
    state: Path
    base: str
    insecure: bool
    link: str
    trust_server_code: bool
    replicas: int | None = None
    train_threads: int | None = None


async def main(options: Options, stop: asyncio.Event) -> None:
    """Run the device, or its replicas, until `stop` is set.

    Raises:
        ConfigError: The options, the keys or the journal cannot be used, or the broker is not there.
        DataError: The data cannot be read, or hold nothing.
        TrellisError: Some of the replicas had failed.
    """
    if options.replicas is None:
        if options.train_threads is not None:
            problem = "is for replicas, and there are none"
            raise ConfigError("options", [Fault("train-threads", problem, "give --replicas, or --threads")])
        settings = settings_of(options)
        data = own_data(settings.data)
        give_back_free_memory()  # of the imports: it may be long until a task comes
        await run_device(settings, data, Turns(), stop)
        return
    if options.link == SUPERNODE:
        problem = "are one process, and flower-supernode is one for each device"
        raise ConfigError("options", [Fault("replicas", problem, "leave --link out")])
    members = settings_of_replicas(options, options.replicas)
    allow_open_files(len(members))
    parts = own_parts([settings.data for settings in members])
    turns = Turns(options.train_threads or default_train_threads(options.threads))
    await run_replicas(
        list(zip(members, parts, strict=True)),
        lambda settings, data: run_device(settings, data, turns, stop),
    )


async def run_device(settings: DeviceSettings, data: Dataset, turns: Turns, stop: asyncio.Event) -> None:
    """Run one device until `stop` is set.

    Raises:
        ConfigError: The journal or the broker's settings cannot be used, or the broker is not there.
    """
    with Journal.open(settings.state / "journal.sqlite", device=settings.principal) as journal:
        info = describe(data, tuple(available_backends()), settings.backend)
        this = Self(settings, info, boot_id=journal.next_boot(), since=now_ms())
        # Bad settings of the broker are told before anything is tried.
        broker = settings.broker_settings()

        def open_bus(*, will: Publication, birth: Birth) -> MqttBus:
            return MqttBus(broker, will=will, birth=birth)

        make_link, pace = _link_of(settings)
        device = Device(settings, data, journal, make_link, pace, turns)
        async with reminding(settings.tls):
            await DeviceAgent(device, this, open_bus).run(stop)


def _link_of(settings: DeviceSettings) -> tuple[LinkFactory, Pace]:
    loop = asyncio.get_running_loop()

    def warm(address: str, folder: Path) -> Link:
        from trellis.flower.link import FlowerLink  # noqa: PLC0415 - no task, no Flower client in memory

        return FlowerLink(address, folder=folder, tls=settings.tls)

    def supernode(address: str, folder: Path) -> Link:
        from trellis.flower.supernode import SupernodeLink  # noqa: PLC0415 - as above

        return SupernodeLink(address, folder=folder / "supernode", tls=settings.tls, loop=loop)

    if settings.link == SUPERNODE:
        # A SuperNode pulls by itself; asking what it has handed over is a wait of its own.
        return supernode, Pace(idle_s=0.0, empty_s=0.0, recheck_s=0.0)
    return warm, Pace()


def settings_of(options: Options) -> DeviceSettings:
    """Return the settings, with the device's keys loaded and checked.

    Raises:
        ConfigError: An option cannot be used, or the certificate is another's.
    """
    # The cut is checked even where no part is asked for: a misspelt option is never ignored.
    parse_split(options.split)
    part = parse_partition(options.partition) if options.partition is not None else None
    principal = f"{options.region}/devices/{options.name}"
    if options.insecure:
        tls, keyring = None, load_keyring(_own_folder(options))
    else:
        identity = Identity.load(find_identity(options.keys, "devices", options.region, options.name))
        identity.require(principal)
        tls, keyring = identity.tls, identity.keyring
    return DeviceSettings(
        name=options.name,
        region=options.region,
        broker=options.broker,
        servers=options.servers,
        data=DataSource(options.data, part, options.split, options.split_seed),
        keyring=keyring,
        tls=tls,
        state=options.state,
        backend=chosen_backend(options.backend),
        threads=options.threads,
        artefact_bytes=options.artefact_mb * 1024**2,
        link=options.link,
        trust_server_code=options.trust_server_code,
        keepalive_s=options.keepalive,
        topics=Topics(options.base),
    )


def chosen_backend(wanted: str) -> str:
    """Return what trains here. What is named and not installed stays: each task then says what is missing.

    Raises:
        ConfigError: No such backend; or any would do, and none is installed.
    """
    if wanted == AUTO:
        return resolve_backend(AUTO)
    artefact_runtime(wanted)
    return wanted


def settings_of_replicas(options: Options, count: int) -> list[DeviceSettings]:
    """Return the settings of `count` devices in one process.

    Raises:
        ConfigError: As `settings_of`; or there are no keys for some, or not so many parts of the data.
    """
    names = replica_names(options.name, count)
    if not options.insecure:
        require_keys(options.keys, options.region, options.name, names)
    each = [settings_of(replace(options, name=name, state=options.state / name)) for name in names]
    sources = shared_out(each[0].data, count)
    return [replace(settings, data=source) for settings, source in zip(each, sources, strict=True)]


def own_data(source: DataSource) -> Dataset:
    """Return the device's own data, read into memory.

    Raises:
        DataError: They cannot be read, or hold no samples.
    """
    dataset = load(source.source, split="train")
    if source.partition is not None:
        index, parts = source.partition
        dataset = partition(dataset, index, parts, split=source.split, seed=source.split_seed)
    if not len(dataset):
        raise DataError(f"data set {source.source!r}", "holds no samples")
    return dataset


def _own_folder(options: Options) -> Path:
    own = options.keys / "devices" / options.region / options.name
    return own if present(own / "operator.pub") else options.keys
