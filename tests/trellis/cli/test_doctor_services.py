"""What `trellis doctor` says of broker, server and gateway: real ones, odd ones, and silent ones."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from regional_gateway.api import Health
from tests.central_server.parts import Launcher, until
from trellis import __version__
from trellis.cli.doctor import services
from trellis.cli.doctor.check import Check, Status
from trellis.cli.doctor.command import DEADLINE_S
from trellis.errors import Unavailable
from trellis.http.server import HttpServer, create_app
from trellis.keys import authority, principals
from trellis.mqtt.broker import EmbeddedBroker
from trellis.mqtt.broker_programs import find_mosquitto
from trellis.payloads import now_ms
from trellis.tls import TlsFiles

NO_KEYS = Path("no-keys-here")


@asynccontextmanager
async def answering(health: Callable[[], dict[str, Any]]) -> AsyncIterator[str]:
    app = create_app("a service")
    app.get("/healthz")(health)
    async with HttpServer(app, host="127.0.0.1", port=0, tls=None) as server:
        yield server.url


async def looked(name: str, url: str | None, keys: Path = NO_KEYS) -> dict[str, Check]:
    one = services.Service(name, url, f"trellis {name}")
    checks = await services.service(one, keys)
    assert [check.name for check in checks] == list(one.names)
    return {check.name: check for check in checks}


def gateway_health(**changes: Any) -> dict[str, Any]:
    well: dict[str, Any] = {
        "status": "ok",
        "version": __version__,
        "ts": now_ms(),
        "region": "eu-1",
        "broker": "connected",
        "parent_broker": "connected",
        "superlink": None,
        "front": None,
        "bridged": False,
        "above": (),
        "tasks": 0,
        "devices": 0,
    }
    return Health.model_validate(well | changes).model_dump()


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is there has as long to answer as a busy machine may take."""
    for name in ("NAME_S", "CONNECT_S", "HTTP_S", "VERSION_S"):
        monkeypatch.setattr(services, name, 30.0)


@pytest.mark.usefixtures("patience")
async def test_a_central_server_at_work_is_well(tmp_path: Path) -> None:
    async with Launcher(tmp_path / "runs")() as running:
        checks = await looked("server", running.server.api_url)
        assert {check.status for check in checks.values()} == {Status.OK}, checks
        assert checks["server"].found == f"{running.server.api_url} answers: version {__version__}, ok"
        running.broker.stop()
        await until(lambda: not running.server.broker_connected)
        checks = await looked("server", running.server.api_url)
        assert (checks["server.broker"].status, checks["server.superlink"].status) == ("failure", "ok")


async def test_a_gateway_whose_parents_broker_is_away_is_a_warning() -> None:
    async with answering(lambda: gateway_health(status="degraded", parent_broker="away")) as url:
        checks = await looked("gateway", url)
    assert [check.status for check in checks.values()] == ["ok", "skipped", "ok", "warning", "ok"]
    assert "no Flower front" in checks["gateway.superlink"].found
    async with answering(lambda: gateway_health(status="degraded", broker="away")) as url:
        assert (await looked("gateway", url))["gateway.broker"].status is Status.FAILURE


@pytest.mark.parametrize(
    ("state", "due"), [("running", "ok"), ("idle", "ok"), ("starting", "ok"), ("down", "failure")]
)
async def test_a_gateways_superlink_is_looked_at(state: str, due: str) -> None:
    health = {"superlink": state, "front": "127.0.0.1:8002"}
    async with answering(lambda: gateway_health(**health)) as url:
        check = (await looked("gateway", url))["gateway.superlink"]
    assert (check.status, state in check.found) == (due, True)


async def test_a_superlink_that_is_down_is_a_failure() -> None:
    down = {"status": "degraded", "version": __version__, "broker": "connected", "superlink": "down"}
    async with answering(lambda: {**down, "ts": now_ms()}) as url:
        checks = await looked("server", url)
    assert checks["server.superlink"].status is Status.FAILURE
    assert checks["server.superlink"].found == "its SuperLink is down"


@pytest.mark.parametrize(
    ("ahead_s", "status", "direction"),
    [
        (0.0, Status.OK, ""),
        (1.5, Status.OK, "ahead of"),
        (5.0, Status.WARNING, "ahead of"),
        (-5.0, Status.WARNING, "behind"),
        (40.0, Status.FAILURE, "ahead of"),
        (-3600.0, Status.FAILURE, "behind"),
    ],
)
async def test_a_clock_that_is_off_is_told(ahead_s: float, status: Status, direction: str) -> None:
    async with answering(lambda: gateway_health(ts=now_ms() + int(ahead_s * 1000))) as url:
        clock = (await looked("gateway", url))["gateway.clock"]
    assert clock.status is status
    assert direction in clock.found
    offset = float(clock.found.split()[0]) * (-1 if "behind" in clock.found else 1)
    # What it says it may be off by, and two roundings to a millisecond.
    doubt = float(clock.found.partition("±")[2].split()[0])
    assert abs(offset - ahead_s) <= doubt + 0.005


@pytest.mark.usefixtures("patience")
async def test_a_slow_round_trip_is_taken_off_before_a_clock_is_blamed() -> None:
    def slow() -> dict[str, Any]:
        # As a link with 0.8 s each way: the time is read in the middle, and answers come late.
        time.sleep(0.8)
        told = gateway_health(ts=now_ms())
        time.sleep(0.8)
        return told

    async with answering(slow) as url:
        clock = (await looked("gateway", url))["gateway.clock"]
    assert clock.status is Status.OK
    # By less than half of what it may be off by: by the answer's coming alone it would be by all of that.
    doubt = float(clock.found.partition("±")[2].split()[0])
    assert float(clock.found.split()[0]) < doubt / 2


async def test_a_service_without_a_time_of_its_own_has_its_clock_skipped() -> None:
    async with answering(lambda: {"status": "ok", "version": __version__}) as url:
        checks = await looked("server", url)
    assert [check.status for check in checks.values()] == ["ok", "skipped", "skipped", "skipped"]


async def test_another_version_is_a_warning_and_another_service_a_failure() -> None:
    async with answering(lambda: gateway_health(version="9.9.9")) as url:
        gateway = (await looked("gateway", url))["gateway"]
    assert gateway.status is Status.WARNING
    assert f"9.9.9, ok; here it is {__version__}" in gateway.found
    async with answering(lambda: {"hello": "world"}) as url:
        assert (await looked("gateway", url))["gateway"].status is Status.FAILURE


@pytest.mark.parametrize(
    ("url", "status", "said"),
    [
        (None, Status.SKIPPED, "no server was named"),
        ("10.0.0.5:8000", Status.SKIPPED, "no URL of an HTTP API"),
        ("http://127.0.0.1:1", Status.FAILURE, "does not answer"),
        ("ftp://127.0.0.1:1", Status.FAILURE, "must be http://HOST:PORT"),
        ("http://[::1", Status.FAILURE, "must be http://HOST:PORT"),
        ("http://10.0.0.5:8080", Status.FAILURE, "use https:// and --keys"),
        ("https://127.0.0.1:8080", Status.FAILURE, "keys in no-keys-here"),
    ],
)
async def test_a_server_that_cannot_be_asked(url: str | None, status: Status, said: str) -> None:
    checks = await looked("server", url)
    assert checks["server"].status is status
    assert said in checks["server"].found
    assert checks["server"].remedy
    assert ("TRELLIS_DEVICE_SERVER" in checks["server"].remedy) == (url == "10.0.0.5:8000")
    assert {check.status for name, check in checks.items() if name != "server"} == {Status.SKIPPED}


async def test_a_host_without_address_is_a_failure() -> None:
    with pytest.raises(Unavailable, match=r"host 'no-such-host\.invalid'"):
        await services._resolve("https://no-such-host.invalid:8080")


async def test_a_name_service_that_hangs_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: over.wait(60))
    monkeypatch.setattr(services, "NAME_S", 0.2)
    began = time.monotonic()
    checks = await looked("server", "http://localhost:8080")
    over.set()
    assert time.monotonic() - began < 20
    assert "the name service has no answer for 'localhost'" in checks["server"].found


@pytest.fixture
def mosquitto() -> None:
    if find_mosquitto() is None:
        if os.environ.get("CI"):
            pytest.fail("mosquitto is not installed, and CI is set")
        pytest.skip("mosquitto is not installed")


@pytest.mark.usefixtures("mosquitto", "patience")
async def test_a_mosquitto_takes_us_and_tells_its_version(tmp_path: Path) -> None:
    async with EmbeddedBroker(port=0, state_dir=tmp_path, prefer="mosquitto") as broker:
        check, clock = await services.broker(broker.url, NO_KEYS)
    assert check.status is Status.OK
    assert check.found.startswith(f"{broker.url} takes us: mosquitto version 2.")
    assert (clock.name, clock.status) == ("broker.clock", Status.SKIPPED)


@pytest.mark.usefixtures("mosquitto", "patience")
async def test_a_broker_with_tls_takes_the_operator_and_nobody_without_keys(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    authority.create_authority(keys)
    own = authority.issue(keys, principals.BROKER)
    tls = TlsFiles(own / "ca.crt", own / "tls.crt", own / "tls.key")
    async with EmbeddedBroker(port=0, state_dir=tmp_path / "broker", tls=tls, prefer="mosquitto") as broker:
        check, _ = await services.broker(broker.url, keys)
        assert check.status is Status.OK
        refused, _ = await services.broker(broker.url, NO_KEYS)
        assert refused.status is Status.FAILURE
        assert "keys in no-keys-here" in refused.found
        strangers = tmp_path / "strangers"
        authority.create_authority(strangers)
        refused, _ = await services.broker(broker.url, strangers)
        assert refused.status is Status.FAILURE
        assert "certificate does not pass" in refused.found


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("mqtt://127.0.0.1:1", "trellis broker"),
        ("mqtt://10.0.0.5:1883", "is not encrypted"),
        ("http://127.0.0.1:1", "must start with mqtt:// or mqtts://"),
    ],
)
async def test_a_broker_that_cannot_be_reached_is_a_failure(
    monkeypatch: pytest.MonkeyPatch, url: str, said: str
) -> None:
    monkeypatch.setattr(services, "CONNECT_S", 0.5)
    check, _ = await services.broker(url, NO_KEYS)
    assert check.status is Status.FAILURE
    assert said in check.found


async def test_a_broker_that_is_silent_is_a_failure_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        began = time.monotonic()
        async with asyncio.timeout(40):
            check, _ = await services.broker(f"mqtt://127.0.0.1:{silent.getsockname()[1]}", NO_KEYS)
    assert check.status is Status.FAILURE
    assert services.NAME_S + services.CONNECT_S + services.VERSION_S < DEADLINE_S
    assert time.monotonic() - began < 20
