"""What only a real connection can show: TLS, refusals, dead links and killed clients."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import ipaddress
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.contract.bus_fixtures import WAIT_S, BrokerRig, missing, take, take_until, until
from trellis.errors import ConfigError, Refused, Unavailable
from trellis.mqtt import BrokerSettings, BusMessage, MqttBus, Publication, TlsFiles
from trellis.mqtt.broker import EmbeddedBroker
from trellis.mqtt.broker_programs import find_mosquitto
from trellis.mqtt.reconnecting import IN_FLIGHT

CONNACK_ACCEPTED = b"\x20\x02\x00\x00"
CONNACK_NOT_AUTHORISED = b"\x20\x02\x00\x05"
PERMANENT_S = WAIT_S / 2
"""What is told at once comes long before the time is over that it was waited for."""


@pytest.fixture
async def mosquitto(tmp_path: Path) -> AsyncIterator[BrokerRig]:
    if find_mosquitto() is None:
        missing("mosquitto is not installed")
    async with BrokerRig("mosquitto", tmp_path) as rig:
        yield rig


@contextlib.asynccontextmanager
async def scripted_broker(
    connack: bytes, suback: int | None = None, pushed: bytes = b""
) -> AsyncIterator[str]:
    """A broker that answers every CONNECT and SUBSCRIBE alike, and sends `pushed` after the latter."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                kind, length = await reader.readexactly(2)
                body = await reader.readexactly(length)
                if kind == 0x10:
                    writer.write(connack)
                elif kind == 0x82 and suback is not None:
                    writer.write(bytes([0x90, 3, body[0], body[1], suback]) + pushed)
                elif kind == 0xA2:
                    writer.write(bytes([0xB0, 2, body[0], body[1]]))
                elif kind == 0xE0:
                    break
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield f"mqtt://127.0.0.1:{server.sockets[0].getsockname()[1]}"


class Authority:
    """A certificate authority for one test."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir()
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"CA {folder.name}")])
        certificate = (
            self._builder(self._name, self._key)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        self.ca = folder / "ca.crt"
        self.ca.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    def issue(self, name: str, address: str = "127.0.0.1") -> TlsFiles:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))])
        certificate = self._builder(subject, key).add_extension(names, critical=False)
        cert_path, key_path = self._folder / f"{name}.crt", self._folder / f"{name}.key"
        signed = certificate.sign(self._key, hashes.SHA256())
        cert_path.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
        pkcs8 = serialization.PrivateFormat.PKCS8
        plain = serialization.NoEncryption()
        key_path.write_bytes(key.private_bytes(serialization.Encoding.PEM, pkcs8, plain))
        return TlsFiles(self.ca, cert_path, key_path)

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(hours=1))
        )


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "authority")


def tls_bus(broker: EmbeddedBroker, files: TlsFiles, client_id: str = "a") -> MqttBus:
    return MqttBus(BrokerSettings(broker.url, client_id, tls=files))


async def test_nobody_there_is_unavailable_and_names_the_remedy() -> None:
    with socket.socket() as taken:  # bound and not listening: connections are refused
        taken.bind(("127.0.0.1", 0))
        url = f"mqtt://127.0.0.1:{taken.getsockname()[1]}"
        async with MqttBus(BrokerSettings(url, "a")) as bus:
            with pytest.raises(Unavailable, match=rf"{url}.*trellis broker"):
                await bus.wait_connected(0.5)


async def test_a_denied_subscription_is_refused_with_its_filter() -> None:
    async with (
        scripted_broker(CONNACK_ACCEPTED, suback=0x80) as url,
        MqttBus(BrokerSettings(url, "a")) as bus,
    ):
        await bus.wait_connected(WAIT_S)
        with pytest.raises(Refused, match="secret/#") as caught:
            await bus.subscribe("secret/#").__aenter__()
        assert caught.value.code == "broker"


async def test_a_subscription_denied_at_the_connect_is_refused_from_its_iteration() -> None:
    async with (
        scripted_broker(CONNACK_ACCEPTED, suback=0x80) as url,
        MqttBus(BrokerSettings(url, "a")) as bus,
        bus.subscribe("secret/#") as got,
    ):
        with pytest.raises(Refused, match="secret/#"):
            await take(got)


async def test_what_a_broker_sends_beyond_the_filters_is_dropped() -> None:
    # PUBLISH at QoS 0 with retain: length, topic with its own length, payload.
    stray, wanted = b"\x31\x08\x00\x05other1", b"\x31\x05\x00\x02t/1"
    async with (
        scripted_broker(CONNACK_ACCEPTED, suback=1, pushed=stray + wanted) as url,
        MqttBus(BrokerSettings(url, "a")) as bus,
        bus.subscribe("t/#") as got,
    ):
        assert await take(got) == [BusMessage("t/", b"1", retain=True)]


async def test_a_client_that_may_not_connect_hears_it_at_once() -> None:
    async with scripted_broker(CONNACK_NOT_AUTHORISED) as url, MqttBus(BrokerSettings(url, "a")) as bus:
        with pytest.raises(Refused, match="does not let client 'a' in"):
            async with asyncio.timeout(PERMANENT_S):
                await bus.wait_connected(WAIT_S)


async def test_a_connection_that_is_closed_without_an_answer_is_tried_again() -> None:
    attempts: list[int] = []

    def close(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        attempts.append(1)
        writer.close()

    async with await asyncio.start_server(close, "127.0.0.1", 0) as server:
        url = f"mqtt://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with MqttBus(BrokerSettings(url, "a")) as bus:
            await until(lambda: len(attempts) >= 3)
            with pytest.raises(Unavailable, match="closed without an answer"):
                await bus.wait_connected(0.1)


async def test_two_clients_with_one_id_do_not_chase_each_other(mosquitto: BrokerRig) -> None:
    wire = await mosquitto.wire("twin")
    async with mosquitto.open("twin"), mosquitto.open("twin", wait=False):
        await asyncio.sleep(3.0)  # the span over which the connections are counted
        # They take turns, and each waits 0.4 s on the mean, then 0.7 s, 1.1 s and so on: six in 3 s.
        assert wire.connections <= 12


async def test_a_stalled_link_is_noticed_by_both_sides(mosquitto: BrokerRig) -> None:
    will = Publication("t/state", b"offline")
    async with (
        mosquitto.open("b") as b,
        b.subscribe("t/#") as got,
        mosquitto.open("a", keepalive_s=1, will=will) as a,
    ):
        wire = await mosquitto.wire("a")
        wire.stall()
        assert (await take(got))[0].payload == b"offline"
        await until(lambda: not a.connected)
        wire.resume()
        await a.wait_connected(WAIT_S)


async def test_who_leaves_before_its_birth_is_acknowledged_is_not_said_to_be_there(
    mosquitto: BrokerRig,
) -> None:
    wire = await mosquitto.wire("a")

    def birth() -> list[Publication]:
        wire.hold_answers()  # the broker has let us in, and that is the last that we hear of it
        return [Publication("t/state", b"online", retain=True)]

    will = Publication("t/state", b"offline", retain=True)
    async with mosquitto.open("b") as b, b.subscribe("t/#") as got:
        async with mosquitto.open("a", wait=False, will=will, birth=birth) as a:
            assert (await take(got))[0].payload == b"online"
            assert not a.connected  # the broker's answer is still on its way
        assert (await take(got))[0].payload == b"offline"


async def test_births_do_not_wait_for_each_others_answer_and_come_in_order(mosquitto: BrokerRig) -> None:
    wire = await mosquitto.wire("a")

    def birth() -> list[Publication]:
        wire.hold_answers()
        return [Publication("t/state", b"%d" % number) for number in range(3 * IN_FLIGHT)]

    async with (
        mosquitto.open("b") as b,
        b.subscribe("t/#") as got,
        mosquitto.open("a", wait=False, birth=birth) as a,
    ):
        unanswered = await take(got, IN_FLIGHT)
        assert not a.connected
        wire.resume()
        rest = await take(got, 2 * IN_FLIGHT)
        await a.wait_connected(WAIT_S)
    said = [message.payload for message in unanswered + rest]
    assert said == [b"%d" % number for number in range(3 * IN_FLIGHT)]


async def test_who_leaves_before_its_farewell_is_acknowledged_is_said_to_have_gone(
    mosquitto: BrokerRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trellis.mqtt.reconnecting.FLUSH_S", 0.1)
    async with mosquitto.open("b") as b, b.subscribe("t/#") as got:
        async with mosquitto.open("a", will=Publication("t/state", b"offline")) as a:
            wire = await mosquitto.wire("a")
            wire.stall()
            farewell = asyncio.create_task(a.publish("t/farewell", b"1"))
            await asyncio.sleep(0)
        wire.resume()
        await take_until(got, b"offline")
        await farewell


CLIENT = """
import asyncio, sys
from trellis.mqtt import BrokerSettings, BusMessage, MqttBus, Publication

async def main():
    will = Publication("t/state", b"offline", retain=True)
    birth = [Publication("t/state", b"online", retain=True)]
    async with MqttBus(BrokerSettings(sys.argv[1], "doomed"), will=will, birth=birth):
        await asyncio.sleep(60)

asyncio.run(main())
"""


async def test_a_killed_process_is_known_lost_at_once(mosquitto: BrokerRig) -> None:
    root = str(Path(__file__).parents[2])
    async with mosquitto.open("b") as b, b.subscribe("t/state") as got:
        url = mosquitto.broker.url
        client = await asyncio.create_subprocess_exec(
            sys.executable, "-c", CLIENT, url, env={**os.environ, "PYTHONPATH": root}
        )
        try:
            await take_until(got, b"online")
        finally:
            client.send_signal(signal.SIGKILL)
            await client.wait()
        async with asyncio.timeout(5):
            await take_until(got, b"offline")


async def test_with_the_right_ca_each_client_is_who_its_certificate_says(
    authority: Authority, tmp_path: Path
) -> None:
    if find_mosquitto() is None:
        missing("mosquitto is not installed")
    acl = tmp_path / "acl"
    acl.write_text("pattern write t/%u\nuser watcher\ntopic read t/#\n", encoding="utf-8")
    broker = EmbeddedBroker(port=0, state_dir=tmp_path / "b", tls=authority.issue("broker"), acl=acl)
    async with broker, tls_bus(broker, authority.issue("watcher"), "watcher") as watcher:
        assert broker.url.startswith("mqtts://")
        async with tls_bus(broker, authority.issue("cam")) as cam, watcher.subscribe("t/#") as got:
            await watcher.wait_connected(WAIT_S)
            await cam.wait_connected(WAIT_S)
            await cam.publish("t/other", b"forged")
            await cam.publish("t/cam", b"own")
            assert (await take(got))[0].payload == b"own"


async def test_a_broker_of_another_ca_is_a_permanent_error_within_seconds(
    authority: Authority, tmp_path: Path
) -> None:
    if find_mosquitto() is None:
        missing("mosquitto is not installed")
    stranger = Authority(tmp_path / "stranger")
    async with (
        EmbeddedBroker(port=0, state_dir=tmp_path / "b", tls=authority.issue("broker")) as broker,
        tls_bus(broker, stranger.issue("cam")) as bus,
    ):
        with pytest.raises(ConfigError, match=r"tls.ca.*does not pass"):
            async with asyncio.timeout(PERMANENT_S):
                await bus.wait_connected(WAIT_S)


async def test_a_certificate_that_the_broker_does_not_know_is_refused(
    authority: Authority, tmp_path: Path
) -> None:
    if find_mosquitto() is None:
        missing("mosquitto is not installed")
    own = Authority(tmp_path / "stranger").issue("cam")
    files = TlsFiles(authority.ca, own.cert, own.key)
    async with (
        EmbeddedBroker(port=0, state_dir=tmp_path / "b", tls=authority.issue("broker")) as broker,
        tls_bus(broker, files) as bus,
    ):
        with pytest.raises(Refused, match="does not accept our certificate"):
            async with asyncio.timeout(PERMANENT_S):
                await bus.wait_connected(WAIT_S)


async def test_a_certificate_for_another_host_is_a_permanent_error(
    authority: Authority, tmp_path: Path
) -> None:
    if find_mosquitto() is None:
        missing("mosquitto is not installed")
    tls = authority.issue("broker", address="127.0.0.2")
    async with (
        EmbeddedBroker(port=0, state_dir=tmp_path / "b", tls=tls) as broker,
        tls_bus(broker, authority.issue("cam")) as bus,
    ):
        with pytest.raises(ConfigError, match="IP address mismatch"):
            async with asyncio.timeout(PERMANENT_S):
                await bus.wait_connected(WAIT_S)


async def test_tls_to_a_plain_port_is_unavailable(mosquitto: BrokerRig, authority: Authority) -> None:
    url = mosquitto.broker.url.replace("mqtt://", "mqtts://")
    async with MqttBus(BrokerSettings(url, "a", tls=authority.issue("cam"))) as bus:
        with pytest.raises(Unavailable, match=url):
            await bus.wait_connected(1)
