"""`trellis gateway` as a process of its own, on a real broker with TLS and its access list."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import ssl
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from trellis.descriptor import parse_mapping
from trellis.envelope import Envelope, sign
from trellis.keys.acl import clients, render
from trellis.keys.authority import create_authority, issue
from trellis.keys.identity import Identity, load_signing_key
from trellis.keys.principals import BROKER, SERVER, gateway
from trellis.loopback import free_ports
from trellis.mqtt import BrokerSettings, Bus, MqttBus
from trellis.mqtt.broker import EmbeddedBroker
from trellis.mqtt.broker_programs import find_mosquitto
from trellis.payloads import Presence, Round, RoundPhase, State
from trellis.signing_key import SigningKey
from trellis.tls import client_context
from trellis.topics import Topics

pytestmark = pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed")

ROOT = Path(__file__).parents[2]
BASE = "trellis/v1"
STATE = f"{BASE}/eu-1/gateway/state"
DESCRIPTOR, ROUND = (f"{BASE}/eu-1/tasks/digits/{what}" for what in ("descriptor", "round"))


class Seen(dict[str, bytes]):
    """The latest payload of each topic, for as long as `follow` runs."""

    async def follow(self, bus: Bus) -> None:
        async with bus.subscribe(f"{BASE}/#") as messages:
            async for message in messages:
                self[message.topic] = message.payload

    def state(self) -> State | None:
        return State.parse(self[STATE]) if STATE in self else None


async def until(condition: Any, timeout_s: float = 60.0) -> Any:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    while not (value := condition()):
        if loop.time() > deadline:
            raise AssertionError(f"did not come true within {timeout_s:g} s")
        await asyncio.sleep(0.01)
    return value


@contextlib.asynccontextmanager
async def process(*arguments: str, folder: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TRELLIS_")}
    running = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "trellis", "gateway", *arguments,
        cwd=folder, env={**environment, "PYTHONPATH": str(ROOT)}, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        yield running
    finally:
        if running.returncode is None:
            running.kill()
        await running.communicate()


def make_keys(root: Path) -> None:
    create_authority(root)
    for principal in (SERVER, BROKER, gateway("eu-1"), gateway("us-1")):
        issue(root, principal)


def access_list(root: Path) -> Path:
    path = root / "access"
    path.write_text(render(clients(root), Topics(BASE)), encoding="utf-8")
    return path


def task(**changes: Any) -> str:
    return parse_mapping(
        {
            "task": "digits",
            "regions": ["eu-1"],
            "server": {"address": "127.0.0.1:8000"},
            "model": {"name": "mlp"},
            "data": {"name": "digits", "shape": [64], "classes": 10},
            "train": {"rounds": 3, "learning_rate": 0.1},
            **changes,
        }
    ).to_json()


async def test_a_task_posted_over_tls_outlives_the_killed_gateway_and_rounds_are_copied(
    tmp_path: Path,
) -> None:
    keys = tmp_path / "keys"
    make_keys(keys)
    operator, server = Identity.load(keys / "operator"), Identity.load(keys / "server")
    signing = load_signing_key(keys)
    broker_tls = Identity.load(keys / "broker").tls
    async with contextlib.AsyncExitStack() as stack:
        broker = await stack.enter_async_context(
            EmbeddedBroker(port=0, state_dir=tmp_path / "broker", tls=broker_tls, acl=access_list(keys))
        )
        centre = await stack.enter_async_context(
            MqttBus(BrokerSettings(broker.url, "central/server", tls=server.tls))
        )
        await centre.wait_connected(60)
        seen = Seen()
        following = asyncio.create_task(seen.follow(centre))
        arguments = (
            "--region", "eu-1", "--keys", str(keys), "--broker", broker.url, "--api-port", "0",
            "--server", "https://127.0.0.1:9",
        )  # fmt: skip
        async with process(*arguments, folder=tmp_path) as running:
            born = await until(lambda: (said := seen.state()) and said.state is Presence.ONLINE and said)
            async with httpx.AsyncClient(
                base_url=born.api, verify=client_context(operator.tls), trust_env=False, timeout=60
            ) as http:
                envelope = sign(task(), signing)
                assert (await http.post("/v1/tasks", content=envelope.to_bytes())).status_code == 201
                rogue = sign(task(revision=2), SigningKey.generate())
                assert (await http.post("/v1/tasks", content=rogue.to_bytes())).status_code == 403
            descriptor = await until(lambda: seen.get(DESCRIPTOR))
            running.send_signal(signal.SIGKILL)
            await running.wait()
        await until(lambda: (said := seen.state()) and said.state is Presence.OFFLINE)  # its will
        assert Envelope.parse(descriptor).signatures == envelope.signatures
        # As a broker does that keeps nothing over its restart.
        async with MqttBus(
            BrokerSettings(broker.url, "remover", tls=Identity.load(keys / "gateways" / "eu-1").tls)
        ) as remover:
            await remover.wait_connected(60)
            await remover.publish(DESCRIPTOR, b"", retain=True)
        await until(lambda: seen[DESCRIPTOR] == b"")
        async with process(*arguments, folder=tmp_path) as running:
            await until(lambda: seen[DESCRIPTOR] == descriptor)
            again = await until(lambda: (said := seen.state()) and said.state is Presence.ONLINE and said)
            assert again.boot_id != born.boot_id
            round_ = Round(round=1, rounds=3, phase=RoundPhase.TRAIN, announced=4).to_bytes()
            await centre.publish(f"{BASE}/central/tasks/digits/round", round_, retain=True)
            await until(lambda: seen.get(ROUND) == round_)
            running.send_signal(signal.SIGTERM)
            assert await asyncio.wait_for(running.wait(), 60) == 0
        await until(lambda: (said := seen.state()) and said.state is Presence.OFFLINE)
        following.cancel()


async def test_the_api_lets_nobody_in_without_a_certificate_of_the_fleet(tmp_path: Path) -> None:
    keys, strange = tmp_path / "keys", tmp_path / "strange"
    make_keys(keys)
    create_authority(strange)
    async with EmbeddedBroker(
        port=0,
        state_dir=tmp_path / "broker",
        tls=Identity.load(keys / "broker").tls,
        acl=access_list(keys),
    ) as broker:
        (port,) = free_ports(1)
        arguments = ("--region", "eu-1", "--keys", str(keys), "--broker", broker.url, "--api-port", str(port))
        async with process(*arguments, folder=tmp_path):
            operator = client_context(Identity.load(keys / "operator").tls)
            url = f"https://127.0.0.1:{port}/healthz"

            async def ask(context: ssl.SSLContext) -> int | None:
                try:
                    async with httpx.AsyncClient(verify=context, trust_env=False, timeout=60) as http:
                        return (await http.get(url)).status_code
                except httpx.TransportError:
                    return None

            async with asyncio.timeout(60):
                while await ask(operator) != 200:  # noqa: ASYNC110 - of a foreign process there is no event
                    await asyncio.sleep(0.05)
            trusting = ssl.create_default_context(cafile=str(keys / "ca" / "ca.crt"))
            assert await ask(trusting) is None
            trusting.load_cert_chain(strange / "operator" / "tls.crt", strange / "operator" / "tls.key")
            assert await ask(trusting) is None
            assert await ask(operator) == 200


@pytest.mark.parametrize(
    ("arguments", "due"),
    [
        (("--insecure", "--broker", "mqtt://127.0.0.1:{port}"), "`trellis broker`"),
        (("--broker", "mqtt://127.0.0.1:{port}"), "is not encrypted"),
        (("--keys", "keys/gateways/us-1"), "certificate is for 'us-1/gateway'"),
        (("--insecure", "--host", "0.0.0.0"), "beyond loopback"),  # noqa: S104 - it is refused
        (("--insecure", "--region", "central"), "is the central server's own name"),
    ],
)
async def test_what_cannot_work_ends_with_2_and_says_what_to_do(
    tmp_path: Path, arguments: tuple[str, ...], due: str
) -> None:
    make_keys(tmp_path / "keys")
    with socket.socket() as closed:  # bound, and nobody listens
        closed.bind(("127.0.0.1", 0))
        given = [one.format(port=closed.getsockname()[1]) for one in arguments]
        async with process("--region", "eu-1", "--api-port", "0", *given, folder=tmp_path) as running:
            _, errors = await asyncio.wait_for(running.communicate(), 90)
    assert running.returncode == 2
    assert due in errors.decode()
    assert "Traceback" not in errors.decode()


async def test_a_taken_port_ends_with_2_and_names_it_and_its_owner(tmp_path: Path) -> None:
    make_keys(tmp_path / "keys")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        given = ("--region", "eu-1", "--insecure", "--api-port", str(port), "--broker", "mqtt://127.0.0.1:1")
        async with process(*given, folder=tmp_path) as running:
            _, errors = await asyncio.wait_for(running.communicate(), 90)
    assert running.returncode == 2
    assert f"port {port} on 127.0.0.1: is taken by " in errors.decode()
    assert f"(pid {os.getpid()}): end it or choose another" in errors.decode()
