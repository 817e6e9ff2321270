"""Where a broker is, and who we are to it."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from urllib.parse import urlsplit

from trellis.errors import ConfigError, Fault
from trellis.tls import TlsFiles

LONGEST_KEEPALIVE_S = 65535
DEFAULT_PORTS = {"mqtt": 1883, "mqtts": 8883}

_EXAMPLES = "such as mqtt://127.0.0.1:1883 or mqtts://broker.example:8883"


def is_loopback(host: str) -> bool:
    """Return whether `host` is surely this machine: no name is looked up."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True)
class BrokerSettings:
    """A broker's address and our name there.

    `tls` is needed for `mqtts://` and unused for `mqtt://`, which goes to loopback only.

    Raises:
        ConfigError: Anything of it cannot be used; every fault is named.
    """

    url: str
    client_id: str
    keepalive_s: int = 20
    tls: TlsFiles | None = None

    def __post_init__(self) -> None:
        faults = [*_url_faults(self.url)]
        if not faults and self.encrypted and self.tls is None:
            remedy = "give CA, certificate and key, made with `trellis keys`"
            faults.append(Fault("broker", f"{self.url} needs TLS files, and there are none", remedy))
        if not 1 <= len(self.client_id.encode()) <= 65535 or "\0" in self.client_id:
            faults.append(Fault("client_id", f"{self.client_id[:80]!r} must be 1 to 65535 bytes without NUL"))
        if not 1 <= self.keepalive_s <= LONGEST_KEEPALIVE_S:
            problem = f"{self.keepalive_s} must be from 1 to {LONGEST_KEEPALIVE_S} seconds"
            faults.append(Fault("keepalive_s", problem))
        if faults:
            raise ConfigError("broker settings", faults)

    @property
    def host(self) -> str:
        return urlsplit(self.url).hostname or ""

    @property
    def port(self) -> int:
        parts = urlsplit(self.url)
        return parts.port or DEFAULT_PORTS[parts.scheme]

    @property
    def encrypted(self) -> bool:
        return urlsplit(self.url).scheme == "mqtts"


def _url_faults(url: str) -> list[Fault]:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        return [Fault("broker", f"{_shown(url)} is no URL: {error}", _EXAMPLES)]
    host = parts.hostname or ""
    checks = [
        (parts.scheme not in DEFAULT_PORTS, "must start with mqtt:// or mqtts://", _EXAMPLES),
        (not host, "names no host", _EXAMPLES),
        (port == 0, "has port 0", _EXAMPLES),
        ("@" in parts.netloc, "holds a user or password", "leave it out: certificates say who we are"),
        (
            parts.path not in ("", "/") or bool(parts.query + parts.fragment),
            "goes on after the port",
            _EXAMPLES,
        ),
        (
            parts.scheme == "mqtt" and bool(host) and not is_loopback(host),
            f"is not encrypted, and {host} is not this machine",
            f"use mqtts://{host}, with keys from `trellis keys`",
        ),
    ]
    return [Fault("broker", f"{_shown(url)} {problem}", remedy) for wrong, problem, remedy in checks if wrong]


def _shown(url: str) -> str:
    # A password typed into a URL must not reach a log.
    scheme, at, rest = url.rpartition("@")
    return repr((f"{scheme.partition('://')[0]}://…@{rest}" if at else url)[:200])
