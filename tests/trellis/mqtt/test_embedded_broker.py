"""The broker that lives as long as its context."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest

from trellis.cli.watching.command import filters, open_bus
from trellis.errors import ConfigError, Unavailable
from trellis.mqtt import BrokerSettings, Limits, MqttBus, TlsFiles
from trellis.mqtt.broker import EmbeddedBroker
from trellis.mqtt.broker_programs import find_mosquitto
from trellis.mqtt.inbox import Subscription
from trellis.topics import Topics

ROOT = str(Path(__file__).parents[3])
FILES = TlsFiles(Path("ca.crt"), Path("a.crt"), Path("a.key"))

SERVICE = """
import asyncio, sys
from pathlib import Path
from trellis.mqtt.broker import EmbeddedBroker

async def main():
    async with EmbeddedBroker(port=0, state_dir=Path(sys.argv[1])) as broker:
        print(broker.pid, flush=True)
        await asyncio.sleep(60)

asyncio.run(main())
"""


@pytest.fixture(autouse=True)
def _mosquitto() -> None:
    if find_mosquitto() is None:
        if os.environ.get("CI"):
            pytest.fail("mosquitto is not installed, and CI is set")
        pytest.skip("mosquitto is not installed")


async def gone(pid: int) -> None:
    async with asyncio.timeout(30):
        while runs(pid):  # noqa: ASYNC110 - not our child: of its end there is no event
            await asyncio.sleep(0.02)


def runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def test_it_answers_once_entered_and_is_gone_once_left(tmp_path: Path) -> None:
    async with EmbeddedBroker(port=0, state_dir=tmp_path) as broker:
        assert broker.kind == "mosquitto"
        async with MqttBus(BrokerSettings(broker.url, "a")) as bus:
            await bus.wait_connected(30)
        pid = broker.pid
    await gone(pid)
    assert "trellis-probe" in (tmp_path / "broker.log").read_text(encoding="utf-8")
    assert not (tmp_path / "broker.pid").exists()


async def test_all_that_a_large_fleet_retains_reaches_a_watcher_that_is_slow(tmp_path: Path) -> None:
    fleet = 500 * 21  # devices, and tasks of each
    async with EmbeddedBroker(port=0, state_dir=tmp_path) as broker:
        settings = BrokerSettings(broker.url, "devices")
        async with MqttBus(settings, limits=Limits(outgoing=fleet)) as devices:
            topics = [f"trellis/v1/eu-1/tasks/t-{number}/execution" for number in range(fleet)]
            await devices.wait_connected(30)
            await asyncio.gather(*(devices.publish(topic, b"x", retain=True) for topic in topics))
        async with open_bus(broker.url, tmp_path) as bus, bus.subscribe(*filters(Topics(), None)) as messages:
            assert isinstance(messages, Subscription)
            async with asyncio.timeout(60):
                while len(messages._waiting) < fleet:
                    assert messages.dropped == 0
                    await asyncio.sleep(0.05)


async def test_the_port_it_takes_for_0_is_none_that_an_outgoing_connection_may_get(tmp_path: Path) -> None:
    async with EmbeddedBroker(port=0, state_dir=tmp_path) as broker:
        first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
        assert (urlsplit(broker.url).port or first) < first


async def test_an_address_that_is_not_of_this_machine_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"192\.0\.2\.1:0: Cannot assign"):
        await EmbeddedBroker("192.0.2.1", 0, state_dir=tmp_path, tls=FILES).__aenter__()


async def test_a_taken_port_is_named_with_its_owner(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"127.0.0.1:{port} is in use by .*\(pid {os.getpid()}\)"):
            await EmbeddedBroker(port=port, state_dir=tmp_path).__aenter__()


async def test_it_ends_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    service = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        SERVICE,
        str(tmp_path),
        env={**os.environ, "PYTHONPATH": ROOT},
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert service.stdout is not None
        async with asyncio.timeout(60):
            pid = int(await service.stdout.readline())
        assert psutil.Process(pid).name() == "mosquitto"
    finally:
        service.send_signal(signal.SIGKILL)
        await service.wait()
    await gone(pid)


async def test_without_tls_it_binds_loopback_only(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not loopback"):
        await EmbeddedBroker("0.0.0.0", 0, state_dir=tmp_path).__aenter__()  # noqa: S104 - refused


async def test_amqtt_is_never_bound_beyond_loopback(tmp_path: Path) -> None:
    for host in ("0.0.0.0", "127.0.0.1"):  # noqa: S104 - refused
        broker = EmbeddedBroker(host, 0, state_dir=tmp_path, tls=FILES, prefer="amqtt")
        with pytest.raises(ConfigError, match=r"amqtt.*without TLS"):
            await broker.__aenter__()


async def test_a_broker_that_does_not_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=r"ended at its start.*acl"):
        await EmbeddedBroker(port=0, state_dir=tmp_path, acl=tmp_path / "missing-acl").__aenter__()
    assert not (tmp_path / "broker.pid").exists()


async def test_where_no_broker_is_installed_the_remedy_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("trellis.mqtt.broker_programs._MOSQUITTO_FOLDERS", ())
    with pytest.raises(Unavailable, match="apt install mosquitto"):
        await EmbeddedBroker(port=0, state_dir=tmp_path, prefer="mosquitto").__aenter__()
