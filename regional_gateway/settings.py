"""What a gateway is told at its start; nothing else configures it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from trellis.descriptor import ServerAddress
from trellis.errors import ConfigError, Fault
from trellis.identifiers import region as region_name
from trellis.tier.supervision import RunTiming
from trellis.topics import DEFAULT_BASE, Topics

BROKER_WAIT_S = 5.0
"""How long the region's broker may take to answer at the start."""

_MOST_KEEP_HOURS = 10 * 365 * 24
FLOWER_APP = Path(__file__).parent / "flower_app"


@dataclass(frozen=True)
class GatewaySettings:
    """Settings of one gateway.

    Attributes:
        region: The region that it serves.
        keys: Folder of its identity, or of all keys.
        broker: Its region's broker.
        parent_broker: The broker of the tier above; the same as `broker` where there is only one.
        server: Base URL of the central server's HTTP API.
        host: Address that its own HTTP API binds.
        api_port: Port of that API, 0 for a free one.
        front_port: Port of its Flower front, 0 for a free one; None: it aggregates nothing.
        front_address: That front as devices reach it, `host:port`; by default what it binds.
        parent: URL of the HTTP API of the gateway above; None where that is the centre.
        state: Folder of its store.
        insecure: Without TLS, and on loopback only.
        keep_hours: How long a task's topics stay after its end.
        base: What all topics start with.
        app: The Flower app that runs the region's rounds.
        timing: How long that app and its SuperLink are waited for.

    Raises:
        ConfigError: Any of it cannot be used; every fault is named.
        PayloadError: The region's name is none.
    """

    region: str
    keys: Path
    broker: str
    parent_broker: str
    server: str
    host: str = "127.0.0.1"
    api_port: int = 8081
    front_port: int | None = None
    front_address: str | None = None
    parent: str | None = None
    state: Path = Path("state")
    insecure: bool = False
    keep_hours: float = 24.0
    base: str = DEFAULT_BASE
    app: Path = FLOWER_APP
    timing: RunTiming = field(default_factory=RunTiming)

    def __post_init__(self) -> None:
        region_name(self.region)
        Topics(self.base)
        faults = [] if self.insecure else list(self._plain_urls())
        if not 0 <= self.api_port <= 65535:
            faults.append(Fault("api-port", f"{self.api_port} must be 0 to 65535"))
        faults += self._front_faults()
        if not 0 <= self.keep_hours <= _MOST_KEEP_HOURS:
            problem = f"{self.keep_hours:g} must be 0 to {_MOST_KEEP_HOURS}"
            faults.append(Fault("keep-hours", problem))
        if faults:
            raise ConfigError(f"gateway of region {self.region!r}", faults)

    def _front_faults(self) -> list[Fault]:
        faults = []
        if self.front_port is not None and not 0 <= self.front_port <= 65535:
            faults.append(Fault("front-port", f"{self.front_port} must be 0 to 65535"))
        if self.front_address is None:
            return faults
        if self.front_port is None:
            faults.append(Fault("front-address", "there is no front", "give --front-port too"))
        if not _is_address(self.front_address):
            faults.append(Fault("front-address", f"{self.front_address!r} must be HOST:PORT"))
        return faults

    def _plain_urls(self) -> list[Fault]:
        urls = {"broker": self.broker, "parent-broker": self.parent_broker, "server": self.server}
        if self.parent is not None:
            urls["parent"] = self.parent
        return [
            Fault(
                name,
                f"{url} is not encrypted",
                f"use {url.partition('://')[0]}s://, or --insecure for trials",
            )
            for name, url in urls.items()
            if url.startswith(("mqtt://", "http://"))
        ]


def _is_address(text: str) -> bool:
    try:
        return bool(ServerAddress(address=text))
    except ValidationError:
        return False
