"""What one device is told at its start, read once and passed down as a value."""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass, field
from pathlib import Path

from models.exported import MAX_ARTEFACT_BYTES
from trellis import identifiers
from trellis.config import DEVICE_SERVER
from trellis.envelope import Keyring
from trellis.errors import ConfigError, Fault, PayloadError
from trellis.loopback import is_loopback
from trellis.mqtt import BrokerSettings
from trellis.mqtt.settings import LONGEST_KEEPALIVE_S
from trellis.tls import TlsFiles
from trellis.topics import Topics

WARM, SUPERNODE = LINKS = ("warm", "supernode")

_ADDRESS = re.compile(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+):([0-9]{1,5})", re.ASCII)


@dataclass(frozen=True)
class DataSource:
    """The device's own data: where they lie, and which part of them is its own (for trials)."""

    source: str
    partition: tuple[int, int] | None = None
    split: str = "iid"
    split_seed: int = 42


@dataclass(frozen=True)
class DeviceSettings:
    """One device.

    Attributes:
        servers: The Flower servers it may connect to, `host:port`; a task that names another is refused.
        tls: Its certificate and the CA it trusts; None means plain connections on loopback.
        keyring: The operators whose tasks it obeys.
        state: The folder of its journal, its Flower keys and its artefacts.
        backend: What trains: `torch`, or a runtime that trains from artefacts.
        threads: Processor threads that training may use.
        artefact_bytes: How large an artefact may be: a larger one is neither fetched nor opened.
        link: Which Flower client it is: `warm`, our own, or `supernode`, the stock `flower-supernode`.
        trust_server_code: Whether this device may run what its server's app holds, as a SuperNode does.
        keepalive_s: Of silence after which it says to the broker that it is there; after half as much again
            the broker takes it for lost.

    Raises:
        ConfigError: Anything of it cannot be used; every fault is named.
    """

    name: str
    region: str
    broker: str
    servers: tuple[str, ...]
    data: DataSource
    keyring: Keyring
    tls: TlsFiles | None
    state: Path
    backend: str = "torch"
    threads: int = 1
    artefact_bytes: int = MAX_ARTEFACT_BYTES
    link: str = WARM
    trust_server_code: bool = False
    keepalive_s: int = 20
    topics: Topics = field(default_factory=Topics)

    def __post_init__(self) -> None:
        faults = [*_name_faults(self.name, self.region)]
        if not self.servers:
            faults.append(Fault("server", "no server was named", "give --server HOST:PORT"))
        for address in self.servers:
            faults += _server_faults(address, insecure=self.tls is None)
        if self.tls is not None and self.broker.startswith("mqtt://"):
            problem = f"{self.broker} is not encrypted"
            faults.append(Fault("broker", problem, "use mqtts://, or --insecure on loopback"))
        if self.threads < 1:
            faults.append(Fault("threads", f"{self.threads} came, at least 1 is due"))
        if not 1 <= self.keepalive_s <= LONGEST_KEEPALIVE_S:
            due = f"a number of seconds from 1 to {LONGEST_KEEPALIVE_S} is due"
            faults.append(Fault("keepalive", f"{self.keepalive_s} came, {due}"))
        faults += _link_faults(self.link, trusted=self.trust_server_code)
        if faults:
            raise ConfigError("device settings", faults)

    @property
    def principal(self) -> str:
        """The name in its certificate."""
        return f"{self.region}/devices/{self.name}"

    @property
    def artefact_folder(self) -> Path:
        """Where what it trains from is kept, where it has no PyTorch."""
        return self.state / "artefacts"

    def broker_settings(self) -> BrokerSettings:
        """Return the broker's settings; the client id is this process's own, and a secret.

        Two processes with one client id would displace each other without end: with ids of their own both
        see the other's birth, and the elder ends. Whoever knows a client id may take it over.
        """
        client_id = f"{self.principal}/{secrets.token_hex(8)}"
        return BrokerSettings(self.broker, client_id, keepalive_s=self.keepalive_s, tls=self.tls)


def _name_faults(name: str, region: str) -> list[Fault]:
    faults: list[Fault] = []
    try:
        identifiers.identifier(name, what="device")
    except PayloadError as error:
        faults.append(Fault("name", str(error)))
    try:
        identifiers.region(region)
    except PayloadError as error:
        faults.append(Fault("region", str(error)))
    return faults


def _link_faults(link: str, *, trusted: bool) -> list[Fault]:
    if link not in LINKS:
        return [Fault("link", f"{link!r} came, {' or '.join(LINKS)} is due")]
    if link == SUPERNODE and not trusted:
        problem = "flower-supernode runs on this device whatever code its server sends"
        return [Fault("link", problem, "add --trust-server-code if you want that, or leave --link out")]
    return []


def _server_faults(address: str, *, insecure: bool) -> list[Fault]:
    match = _ADDRESS.fullmatch(address)
    if match is None or not 1 <= int(match[2]) <= 65535:
        remedy = "such as 10.0.0.5:8000"
        if "://" in address:
            remedy += f"; where TRELLIS_SERVER is the operators' URL, give a device {DEVICE_SERVER}"
        return [Fault("server", f"{address[:200]!r} came, HOST:PORT is due", remedy)]
    if insecure and not is_loopback(match[1]):
        problem = f"{address} is not this machine, and --insecure connects to loopback only"
        return [Fault("server", problem, "leave --insecure out, with keys from 'trellis keys'")]
    return []
