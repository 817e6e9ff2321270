"""Who may not come in: other fleets' certificates, none at all, expired ones, other hosts', and plaintext.

Each is turned away, and it is said where an operator looks.
"""

from __future__ import annotations

import datetime as dt
import shutil
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
from certificates import reissue
from machines import LIMIT_S, TRELLIS, Running
from namespaces import network
from secure_federation import OTHER, REGION, SecureFleet
from shipped_broker import configuration, program

from trellis.loopback import free_ports

pytestmark = pytest.mark.timeout(400)

NOW = dt.datetime.now(dt.UTC)
LAST_YEAR = (NOW - dt.timedelta(days=400), NOW - dt.timedelta(days=35))


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureFleet]:
    with network() as ends, SecureFleet(tmp_path_factory.mktemp("fleet"), ends) as running:
        yield running


@pytest.fixture(scope="module")
def stranger(fleet: SecureFleet) -> Path:
    """The keys of `d1` as another fleet's CA has issued them."""
    other = fleet.folder / "other"
    fleet.administrate("init", str(other), "--host", fleet.network.centre)
    fleet.administrate("device", "d1", "--region", REGION, "--keys", str(other))
    return other / "devices" / REGION / "d1"


def door(fleet: SecureFleet, name: str) -> tuple[str, int]:
    """Return where a service listens."""
    if name == "gateway":
        return fleet.network.edge, fleet.gateway_port
    return fleet.network.centre, int(fleet.ports[name])


def knock(fleet: SecureFleet, where: tuple[str, int], identity: Path | None) -> bytes:
    """Return what a service answers a client that trusts it and shows this certificate, or none."""
    context = ssl.create_default_context(cafile=fleet.keys / "ca" / "ca.crt")
    if identity is not None:
        context.load_cert_chain(identity / "tls.crt", identity / "tls.key")
    with (
        socket.create_connection(where, LIMIT_S) as raw,
        context.wrap_socket(raw, server_hostname=where[0]) as tls,
    ):
        tls.sendall(b"GET /healthz HTTP/1.1\r\nhost: fleet\r\nconnection: close\r\n\r\n")
        return tls.recv(1000)


# mosquitto says it as `OpenSSL Error[0]: error:…` or as `Client connection from … failed: error:…`, as the
# handshake's end reaches it.
BROKER_SAYS = "error:[0-9A-F]+:SSL routines:.*"
DOORS = {"front": "server", "api": "server", "gateway": "gateway"}


@pytest.mark.parametrize("name", DOORS)
def test_the_http_doors_open_to_our_certificates_alone(fleet: SecureFleet, stranger: Path, name: str) -> None:
    where, log = door(fleet, name), fleet.running[DOORS[name]]
    # The control: so they would answer.
    assert knock(fleet, where, fleet.keys / "operator").startswith(b"HTTP/1.1 ")
    for identity, said in (
        (None, "peer did not return a certificate"),
        (stranger, "certificate verify failed: (self-signed certificate|unable to get local issuer)"),
    ):
        assert refused(fleet, where, identity)
        log.says(rf"WARNING.*port {where[1]}: a TLS connection was refused: .*{said}")


def test_the_broker_opens_to_our_certificates_alone(fleet: SecureFleet, stranger: Path) -> None:
    where, log = door(fleet, "broker"), fleet.running["broker"]
    for identity, said in (
        (None, "peer did not return a certificate"),
        (stranger, "certificate verify failed"),
    ):
        assert refused(fleet, where, identity)
        log.says(BROKER_SAYS + said)


def refused(fleet: SecureFleet, where: tuple[str, int], identity: Path | None) -> bool:
    # With TLS 1.3 a server refuses a certificate only after the client has begun to speak.
    try:
        return knock(fleet, where, identity) == b""
    except (ssl.SSLError, ConnectionError):
        return True


def test_a_client_with_an_expired_certificate_is_refused_everywhere(fleet: SecureFleet) -> None:
    expired = fleet.folder / "expired"
    shutil.copytree(fleet.keys / "devices" / REGION / "d1", expired)
    reissue(expired, fleet.keys / "ca", *LAST_YEAR)
    for name, log in {**DOORS, "broker": "broker"}.items():
        where = door(fleet, name)
        assert refused(fleet, where, expired)
        said = BROKER_SAYS + "certificate verify failed" if name == "broker" else "certificate has expired"
        fleet.running[log].says(said)


def test_a_device_of_another_fleet_is_told_and_so_is_the_brokers_operator(
    fleet: SecureFleet, stranger: Path
) -> None:
    shutil.copytree(stranger, fleet.edge.folder / "alien")
    done = fleet.edge.run(*fleet.device_command("d1", keys="alien"))
    assert done.code == 2
    assert f"error: broker {fleet.broker_url}: tls.ca: the broker's certificate does not pass" in done.err
    assert "is alien/ca.crt the CA that signed it" in done.err
    fleet.running["broker"].says("error:.*alert unknown ca")


def test_a_device_with_another_cas_certificate_beside_our_ca_does_not_start(
    fleet: SecureFleet, stranger: Path
) -> None:
    mixed = fleet.edge.folder / "mixed"
    shutil.copytree(stranger, mixed)
    shutil.copy(fleet.keys / "ca" / "ca.crt", mixed / "ca.crt")
    done = fleet.edge.run(*fleet.device_command("d1", keys="mixed"))
    assert (done.code, "was not issued by the CA in ca.crt" in done.err) == (2, True), done.err


def test_a_device_certificate_of_another_region_does_not_start_here(fleet: SecureFleet) -> None:
    keys = fleet.issued("devices", OTHER, "d3", to=fleet.edge)
    done = fleet.edge.run(*fleet.device_command("d3", keys=keys))
    assert done.code == 2
    assert "certificate is for 'us-1/devices/d3', this device is 'eu-1/devices/d3'" in done.err


@pytest.mark.parametrize("role", ["device", "gateway", "server"])
def test_a_machine_whose_certificate_has_expired_says_so_and_does_not_start(
    fleet: SecureFleet, role: str
) -> None:
    parts = {"device": ("devices", REGION, "d1"), "gateway": ("gateways", REGION), "server": ("server",)}[
        role
    ]
    folder = fleet.edge.folder / f"expired-{role}"
    shutil.copytree(fleet.keys.joinpath(*parts), folder)
    reissue(folder, fleet.keys / "ca", *LAST_YEAR)
    command = {
        "device": fleet.device_command("d1", keys=folder.name),
        "gateway": ("gateway", "--region", REGION, "--keys", folder.name, "--broker", fleet.broker_url),
        "server": ("server", "--keys", folder.name, "--broker", fleet.broker_url),
    }[role]
    done = fleet.edge.run(*command)
    assert done.code == 2
    assert f"expired-{role}/tls.crt: expired {LAST_YEAR[1]:%Y-%m-%d}" in done.err


@pytest.fixture(params=["expired", "of another host"])
def false_broker(fleet: SecureFleet, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    """A broker of our CA whose certificate has expired, or names another host; yields its URL."""
    identity, state = tmp_path / "keys", tmp_path / "state"
    shutil.copytree(fleet.keys / "broker", identity)
    if request.param == "expired":
        reissue(identity, fleet.keys / "ca", *LAST_YEAR)
    else:
        reissue(identity, fleet.keys / "ca", NOW, NOW + dt.timedelta(days=1), host="198.51.100.7")
    state.mkdir()
    host = fleet.network.centre
    (port,) = free_ports(1, host)
    (state / "mosquitto.conf").write_text(configuration(identity, state, host, port), encoding="utf-8")
    broker = Running(
        "false broker", fleet.centre, [program("mosquitto"), "-c", str(state / "mosquitto.conf")]
    )
    try:
        broker.says("running")
        yield f"mqtts://{host}:{port}"
    finally:
        broker.stop()


def test_a_broker_with_a_bad_certificate_is_not_spoken_to(fleet: SecureFleet, false_broker: str) -> None:
    keys = fleet.issued("devices", REGION, "d1", to=fleet.edge)
    command = [*fleet.device_command("d1", "--state", "apart", keys=keys)]
    command[command.index("--broker") + 1] = false_broker
    done = fleet.edge.run(*command)
    assert done.code == 2
    assert f"broker {false_broker}: tls.ca: the broker's certificate does not pass: " in done.err
    assert ("certificate has expired" in done.err) != ("IP address mismatch" in done.err)


def test_an_api_of_another_host_is_not_spoken_to(fleet: SecureFleet) -> None:
    keys = fleet.issued("gateways", OTHER, to=fleet.edge)  # issued without --host
    where = ("--server", fleet.server_url, "--host", fleet.network.edge, "--api-port", "0")
    command = ("gateway", "--region", OTHER, "--keys", keys, "--broker", fleet.broker_url, *where)
    gateway = Running("gateway of another host", fleet.edge, [*TRELLIS, *command])
    try:
        url = gateway.says("gateway listens api=").partition("api=")[2]
        file = fleet.task_file(fleet.task("elsewhere", regions=[OTHER]))
        done = fleet.operator("task", "post", file, "--gateway", url)
        assert done.code != 0
        assert f"error: {url} does not answer: " in done.err
        assert "IP address mismatch" in done.err
    finally:
        gateway.stop()


def test_our_commands_send_nothing_in_plaintext_beyond_loopback(fleet: SecureFleet) -> None:
    centre, edge = fleet.network.centre, fleet.network.edge
    plain_broker, plain_server = f"mqtt://{centre}:1883", f"http://{centre}:8080"
    file = fleet.task_file(fleet.task("plain"))
    operator = fleet.issued("operator", to=fleet.centre)
    d1 = fleet.issued("devices", REGION, "d1", to=fleet.centre)
    server = ("server", "--runs", "other-runs", "--keys", "keys-server")
    data = ("--name", "d1", "--region", REGION, "--keys", d1, "--data", "digits")
    commands = {
        ("task", "list", "--server", plain_server): plain_server,
        ("task", "post", file, "--gateway", f"http://{edge}:8081", "--keys", operator): f"http://{edge}:8081",
        ("model", "get", "plain", "-o", "m", "--server", plain_server): plain_server,
        ("watch", "--broker", plain_broker): plain_broker,
        (*server, "--broker", plain_broker): plain_broker,
        (*server, "--insecure", "--broker", plain_broker): plain_broker,
        (*server, "--insecure", "--host", centre): centre,
        ("gateway", "--region", REGION, "--keys", "keys-server", "--broker", plain_broker): plain_broker,
        ("gateway", "--region", REGION, "--keys", "keys-server", "--insecure", "--host", centre): centre,
        ("gateway", "--region", REGION, "--keys", "keys-server", "--server", plain_server): plain_server,
        ("device", *data, "--broker", plain_broker): plain_broker,
        ("device", *data, "--insecure", "--broker", plain_broker): plain_broker,
        ("device", *data, "--insecure", "--server", fleet.front): fleet.front,
        ("broker", "--host", centre): centre,
        ("broker", "--host", centre, "--insecure", "--keys", "keys-broker"): centre,
    }
    told = {command: fleet.centre.run(*command) for command in commands}
    assert {command: done.code for command, done in told.items()} == dict.fromkeys(commands, 2)
    silent = [
        (command, done.err)
        for command, done in told.items()
        if commands[command] not in done.err or "Traceback" in done.err
    ]
    assert silent == []
