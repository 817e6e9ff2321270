"""Which brokers a gateway has, and whether its two are one."""

from __future__ import annotations

import asyncio
import socket
from typing import Protocol
from urllib.parse import SplitResult, urlsplit

from regional_gateway.settings import BROKER_WAIT_S
from trellis.errors import ConfigError, Unavailable
from trellis.mqtt import FLEET, Birth, BrokerSettings, Bus, MqttBus, Publication
from trellis.mqtt.settings import DEFAULT_PORTS
from trellis.tls import TlsFiles


class Connect(Protocol):
    """Makes the bus to a broker; `MemoryBroker`s take the place of real ones in trials."""

    def __call__(self, url: str, client_id: str, *, will: Publication, birth: Birth) -> Bus: ...


def mqtt(tls: TlsFiles | None) -> Connect:
    """Return what connects to real brokers, as the holder of these keys."""

    def connect(url: str, client_id: str, *, will: Publication, birth: Birth) -> Bus:
        settings = BrokerSettings(url, client_id, tls=tls)
        return MqttBus(settings, will=will, birth=birth, limits=FLEET)

    return connect


async def wait_for(bus: Bus) -> None:
    """Return once the region's broker has accepted us.

    Raises:
        ConfigError: It does not answer.
    """
    try:
        await bus.wait_connected(BROKER_WAIT_S)
    except Unavailable as error:
        raise ConfigError("gateway", str(error)) from error


async def are_one(first: str, second: str) -> bool:
    """Whether two broker URLs lead to the same port of the same machine.

    Bridging a broker to itself would send each message round in circles.
    """
    if first == second:
        return True
    one, other = urlsplit(first), urlsplit(second)
    if (one.port or DEFAULT_PORTS.get(one.scheme)) != (other.port or DEFAULT_PORTS.get(other.scheme)):
        return False
    return one.hostname == other.hostname or bool(await _addresses(one) & await _addresses(other))


async def _addresses(url: SplitResult) -> set[str]:
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(url.hostname, None, type=socket.SOCK_STREAM)
    except OSError:
        return set()  # it will say so itself when it is connected to
    addresses = {str(address[0]) for *_, address in found}
    return {"loopback"} if addresses <= {"127.0.0.1", "::1"} else addresses
