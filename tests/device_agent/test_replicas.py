"""Many devices in one process: each is itself, and one that fails takes nobody with it."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from device_agent.replicas import allow_open_files, own_parts, run_replicas, shared_out
from device_agent.reporting import HERE_ONLY, SPEAKER, TaskLog
from device_agent.service import Options, main, run_device, settings_of_replicas
from device_agent.settings import DataSource, DeviceSettings
from device_agent.turns import Turns
from models.datasets import Dataset, load
from models.datasets.partition import partition
from trellis.errors import Canceled, ConfigError, TrellisError
from trellis.keys.command import app as keys_app
from trellis.keys.identity import Identity
from trellis.mqtt import BrokerSettings, BusMessage, MemoryBroker, MqttBus
from trellis.mqtt.broker import EmbeddedBroker
from trellis.payloads import Presence, State
from trellis.topics import Topics


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fleet") / "keys"
    for arguments in (
        ("init", folder, "--region", "eu-1"),
        ("device", "sim", "--region", "eu-1", "--replicas", 3, "--keys", folder),
    ):
        assert CliRunner().invoke(keys_app, [str(one) for one in arguments]).exit_code == 0
    return folder


@pytest.fixture
def options(keys: Path, tmp_path: Path) -> Options:
    data = tmp_path / "blobs.npz"
    x = np.arange(160, dtype=np.float32).reshape(40, 4)
    np.savez(data, x_train=x, y_train=np.arange(40) % 3, x_test=x[:3], y_test=np.arange(3))
    return Options(
        name="sim",
        region="eu-1",
        data=str(data),
        keys=keys,
        broker="mqtts://10.0.0.5:8883",
        servers=("10.0.0.5:8000",),
        partition=None,
        split="iid",
        split_seed=42,
        backend="torch",
        threads=1,
        artefact_mb=256,
        state=tmp_path / "state",
        base="trellis/v1",
        insecure=False,
        link="warm",
        trust_server_code=False,
        replicas=3,
        keepalive=20,
    )


def test_every_replica_has_its_own_name_certificate_state_part_and_client_id(options: Options) -> None:
    each = settings_of_replicas(options, 3)
    assert [one.principal for one in each] == [f"eu-1/devices/sim-{n}" for n in (1, 2, 3)]
    assert [one.tls.cert.parent.name for one in each if one.tls] == ["sim-1", "sim-2", "sim-3"]
    assert [one.state.relative_to(options.state) for one in each] == [Path(f"sim-{n}") for n in (1, 2, 3)]
    assert [one.data.partition for one in each] == [(0, 3), (1, 3), (2, 3)]
    assert len({one.broker_settings().client_id for one in each}) == 3


def test_replicas_without_certificates_are_counted_with_the_command_that_makes_them(options: Options) -> None:
    with pytest.raises(ConfigError) as caught:
        settings_of_replicas(options, 5)
    assert str(caught.value) == (
        f"keys in {options.keys}: 2 of 5 replicas have no certificate, the first is 'sim-4': make them with "
        "'trellis keys device sim --region eu-1 --replicas 5'"
    )


def test_replicas_of_a_region_may_take_parts_in_a_row_of_a_larger_whole() -> None:
    source = DataSource("digits", (10, 50), "classes")
    assert [one.partition for one in shared_out(source, 3)] == [(10, 50), (11, 50), (12, 50)]
    with pytest.raises(ConfigError, match=r"partition: 48/50 came, and 3 replicas take parts 48 to 50"):
        shared_out(DataSource("digits", (48, 50)), 3)


@pytest.mark.parametrize("split", ["iid", "classes", "dirichlet:0.3"])
def test_the_parts_are_those_of_devices_of_their_own(options: Options, split: str) -> None:
    sources = shared_out(DataSource(options.data, (1, 5), split), 3)
    whole = load(options.data, split="train")
    for source, part in zip(sources, own_parts(sources), strict=True):
        assert source.partition is not None
        alone = partition(whole, *source.partition, split=split, seed=42)
        assert part.x.tolist() == alone.x.tolist()


async def test_train_threads_without_replicas_are_a_fault(options: Options) -> None:
    alone = replace(options, replicas=None, train_threads=2)
    with pytest.raises(ConfigError, match="train-threads: is for replicas"):
        await main(alone, asyncio.Event())


async def test_the_stock_supernode_is_refused(options: Options) -> None:
    with pytest.raises(ConfigError, match="replicas: are one process, and flower-supernode is one for each"):
        await main(replace(options, link="supernode", trust_server_code=True), asyncio.Event())


def test_more_devices_than_the_system_lets_open_files_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"100000000 devices open up to 1000000200 files, this system"):
        allow_open_files(100_000_000)


async def failures(options: Options, broken: dict[str, Exception]) -> tuple[list[str], TrellisError | None]:
    """Run three devices, of which those in `broken` fail at once; return who ended well, and the error."""
    ended: list[str] = []

    async def run(settings: DeviceSettings, _: Dataset) -> None:
        if settings.name in broken:
            raise broken[settings.name]
        await asyncio.sleep(0)  # the others' failure has come
        ended.append(settings.name)

    each = settings_of_replicas(options, 3)
    members = list(zip(each, own_parts([one.data for one in each]), strict=True))
    try:
        await run_replicas(members, run)
    except TrellisError as error:
        return ended, error
    return ended, None


async def test_a_device_that_fails_ends_alone_and_is_named(
    options: Options, caplog: pytest.LogCaptureFixture
) -> None:
    group = ExceptionGroup("tasks", [ExceptionGroup("inner", [RuntimeError("a bug")])])
    ended, error = await failures(options, {"sim-1": group, "sim-3": ConfigError("journal", "is damaged")})
    assert ended == ["sim-2"]
    assert str(error) == "2 of 3 devices have failed, the first was sim-1: a bug"
    assert "device sim-3 has ended: journal: is damaged" in caplog.text
    assert "RuntimeError: a bug" in caplog.text  # a bug keeps its traceback


async def test_where_all_fail_the_first_ones_error_says_what_to_do(options: Options) -> None:
    error = ConfigError("broker", "is not there")
    ended, raised = await failures(options, {f"sim-{n}": error for n in (1, 2, 3)})
    assert (ended, raised) == ([], error)


def test_so_many_train_at_a_time_and_no_more() -> None:
    turns, lock, inside, most = Turns(2), threading.Lock(), 0, 0
    two_in = threading.Barrier(2, timeout=30)

    def train() -> None:
        nonlocal inside, most
        with turns.turn(lambda: False, lambda: None):
            with lock:
                inside += 1
                most = max(most, inside)
            two_in.wait()  # passes only if two are in at once, and shows a third before it leaves
            with lock:
                inside -= 1

    threads = [threading.Thread(target=train, daemon=True) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert most == 2


def test_whoever_waits_for_a_turn_can_be_called_off_and_a_failure_gives_the_turn_back() -> None:
    turns, waits = Turns(), []
    called_off = pytest.raises(Canceled, match="before its turn came")
    with (
        called_off,
        turns.turn(lambda: False, lambda: waits.append("first")),
        turns.turn(lambda: True, lambda: waits.append("second")),
    ):
        pass
    with turns.turn(lambda: False, lambda: waits.append("third")):
        pass
    assert waits == ["second"]


async def test_a_log_line_belongs_to_the_device_whose_code_wrote_it() -> None:
    broker = MemoryBroker()
    said: list[str] = []
    logger = logging.getLogger("device_agent.test_replicas")
    logger.setLevel(logging.INFO)
    async with broker.bus("devices") as bus, bus.subscribe("trellis/v1/#") as messages:
        await bus.wait_connected(30)
        logs = [TaskLog(bus, Topics(), region="eu-1", device=name) for name in ("a", "b")]
        for log in logs:
            log.task = "blobs"
            logger.addHandler(log)

        def speak() -> None:
            SPEAKER.set("eu-1/devices/b")
            logger.info("mine")

        senders = [asyncio.create_task(log.run(), name="log lines") for log in logs]
        try:
            contextvars.copy_context().run(speak)
            logger.info("nobody's", extra={HERE_ONLY: True})
            logger.info("everybody's")  # written outside of any device
            async with asyncio.timeout(30):
                async for message in messages:
                    said.append(f"{message.topic} {message.payload.decode()}")
                    if len(said) == 3:
                        break
        finally:
            for log, sender in zip(logs, senders, strict=True):
                logger.removeHandler(log)
                sender.cancel()
            await asyncio.wait(senders)
    assert not any("nobody's" in one for one in said)
    assert sorted(("devices/a" in one, "devices/b" in one, "mine" in one) for one in said) == [
        (False, True, False),
        (False, True, True),
        (True, False, False),
    ]


class Watcher:
    """An operator who sees every state."""

    def __init__(self) -> None:
        self.states: dict[str, State] = {}

    @asynccontextmanager
    async def on(self, url: str, identity: Identity) -> AsyncIterator[Watcher]:
        async with (
            MqttBus(BrokerSettings(url, "operator", tls=identity.tls)) as bus,
            bus.subscribe("trellis/v1/eu-1/devices/+/state") as messages,
        ):
            reading = asyncio.create_task(self._read(messages))
            yield self
            reading.cancel()

    async def _read(self, messages: AsyncIterator[BusMessage]) -> None:
        async for message in messages:
            self.states[message.topic.split("/")[4]] = State.parse(message.payload)

    def online(self) -> set[str]:
        return {name for name, one in self.states.items() if one.state is Presence.ONLINE}

    async def until(self, holds: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 60
        while not holds():
            assert time.monotonic() < deadline, self.states
            await asyncio.sleep(0.02)


async def test_with_tls_each_speaks_under_its_own_certificate_and_a_displaced_one_leaves_the_others(
    options: Options, tmp_path: Path
) -> None:
    keys = options.keys
    tls = Identity.load(keys / "broker").tls
    async with EmbeddedBroker(
        port=0, state_dir=tmp_path / "broker", tls=tls, acl=keys / "broker" / "acl"
    ) as (broker):
        stop = asyncio.Event()
        own = replace(options, broker=broker.url)
        async with Watcher().on(broker.url, Identity.load(keys / "operator")) as watcher:
            running = asyncio.create_task(main(own, stop))
            # The access list lets each write its own topics alone: three states are three certificates.
            await watcher.until(lambda: watcher.online() == {"sim-1", "sim-2", "sim-3"})
            (_, second, _) = settings_of_replicas(replace(own, state=tmp_path / "elsewhere"), 3)
            younger = asyncio.create_task(run_device(second, own_parts([second.data])[0], Turns(), stop))
            first = watcher.states["sim-2"].boot_id
            await watcher.until(lambda: watcher.states["sim-2"].boot_id != first)
            await watcher.until(lambda: watcher.online() == {"sim-1", "sim-2", "sim-3"})
            assert not running.done()
            stop.set()
            with pytest.raises(TrellisError, match=r"1 of 3 devices have failed.*sim-2.*a second time"):
                await asyncio.wait_for(running, 60)
            await asyncio.wait_for(younger, 60)
            await watcher.until(lambda: watcher.online() == set())
