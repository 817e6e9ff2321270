"""Whether broker, server and gateway answer, and how they are."""

from __future__ import annotations

import asyncio
import secrets
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from trellis import __version__
from trellis.cli.doctor.check import Check, aside, failure, ok, skipped, warning
from trellis.cli.options import operator_tls
from trellis.config import DEVICE_SERVER
from trellis.errors import InvalidInput, TrellisError, Unavailable
from trellis.http.client import ServiceClient
from trellis.loopback import is_loopback
from trellis.mqtt.bus import MqttBus
from trellis.mqtt.settings import BrokerSettings
from trellis.payloads import now_ms

NAME_S = 2.5
CONNECT_S = 3.5
HTTP_S = 6.0
VERSION_S = 1.5
"""For the broker's version, which a broker sends at once if it tells it at all."""

SKEW_WARNING_S, SKEW_FAILURE_S = 2.0, 30.0
_ROUND_TRIPS = 3
_SET_CLOCK = "set the clock, and let it follow a time server (timedatectl set-ntp true)"
_AWAY = "start it, or mend the URL and the network between"


@dataclass(frozen=True)
class Service:
    """One of our HTTP services.

    Attributes:
        name: `server` or `gateway`.
        command: What starts it.
    """

    name: str
    url: str | None
    command: str

    @property
    def names(self) -> tuple[str, ...]:
        """Of its checks."""
        parts = ("superlink", "broker", *(("parent-broker",) if self.name == "gateway" else ()))
        return (self.name, *(f"{self.name}.{part}" for part in parts), f"{self.name}.clock")


async def service(one: Service, keys: Path) -> list[Check]:
    """Look at a service's health, what it has at hand, and its clock."""
    if one.url is None:
        return [
            skipped(one.names[0], f"no {one.name} was named", f"give --{one.name} URL"),
            *_rest(one, "was not asked"),
        ]
    if "://" not in one.url:
        # A device's list of Flower servers has the same variable.
        why = f"{one.url} is HOST:PORT, as `trellis device` takes it, and no URL of an HTTP API"
        remedy = f"give --{one.name} URL, and devices theirs in {DEVICE_SERVER}"
        return [skipped(one.name, why, remedy), *_rest(one, "was not asked")]
    try:
        await _resolve(one.url)
        async with asyncio.timeout(HTTP_S), _client(one, keys) as client:
            health, skew = await _measured(client)
    except TimeoutError:
        return [failure(one.name, f"{one.url} does not answer within {HTTP_S:g} s", _AWAY), *_rest(one)]
    except InvalidInput as error:
        return [failure(one.name, str(error), "mend the URL or the keys"), *_rest(one)]
    except TrellisError as error:
        return [failure(one.name, str(error), f"start it with `{one.command}`, or mend the URL"), *_rest(one)]
    return [_answered(one, health), *_parts(one, health), _clock(f"{one.name}.clock", skew)]


def _client(one: Service, keys: Path) -> ServiceClient:
    return ServiceClient(one.url or "", tls=operator_tls(one.url or "", keys))


def _rest(one: Service, why: str = "did not answer") -> list[Check]:
    return [skipped(name, f"the {one.name} {why}") for name in one.names[1:]]


@dataclass(frozen=True)
class Skew:
    """A clock against ours.

    Attributes:
        offset_s: How far it is ahead of ours.
        doubt_s: Half the round trip: the offset may be off by so much.
    """

    offset_s: float
    doubt_s: float


async def _measured(client: ServiceClient) -> tuple[dict[str, Any], Skew | None]:
    health: dict[str, Any] = {}
    skews: list[Skew] = []
    for _ in range(_ROUND_TRIPS):
        began, began_ms = time.perf_counter(), now_ms()
        health = await client.get("/healthz")
        trip_s = time.perf_counter() - began
        if isinstance(health.get("ts"), int):
            skews.append(Skew((health["ts"] - began_ms) / 1000 - trip_s / 2, trip_s / 2))
    return health, min(skews, key=lambda skew: skew.doubt_s, default=None)


def _answered(one: Service, health: dict[str, Any]) -> Check:
    version = health.get("version")
    if "status" not in health or version is None:
        return failure(one.name, f"{one.url} is no Trellis {one.name}", "mend the URL")
    found = f"{one.url} answers: version {version}, {health['status']}"
    if version != __version__:
        return warning(one.name, f"{found}; here it is {__version__}", "install the same version on both")
    return ok(one.name, found)


def _parts(one: Service, health: dict[str, Any]) -> Iterator[Check]:
    due = {"superlink": ("running", "SuperLink"), "broker": ("connected", "broker")}
    due["parent-broker"] = ("connected", "parent's broker")
    for name in one.names[1:-1]:
        part = name.partition(".")[2]
        good, noun = due[part]
        state = health.get(part.replace("-", "_"))
        if state is None and part == "superlink" and health.get("front", "") is None:
            yield skipped(name, "the gateway has no Flower front (--front-port), and needs none")
        elif state == "idle":
            yield ok(name, f"its {noun} is idle: no task needs it")
        elif state == "starting":
            yield ok(name, f"its {noun} is starting: a task has just come to need it")
        elif state is None:
            yield skipped(name, f"the {one.name} does not tell")
        elif state == good:
            yield ok(name, f"its {noun} is {state}")
        elif part == "parent-broker":
            yield warning(name, f"its {noun} is {state}: rounds go on by polling", "look at that broker")
        else:
            yield failure(name, f"its {noun} is {state}", f"look at the {noun}, and at the {one.name}'s log")


def _clock(name: str, skew: Skew | None) -> Check:
    if skew is None:
        return skipped(name, "its /healthz tells no time: it is older than this version")
    direction = "ahead of" if skew.offset_s > 0 else "behind"
    found = f"{abs(skew.offset_s):.3f} s {direction} ours (±{skew.doubt_s:.3f} s)"
    certain = max(abs(skew.offset_s) - skew.doubt_s, 0.0)
    if certain > SKEW_FAILURE_S:
        return failure(name, found, _SET_CLOCK)
    return warning(name, found, _SET_CLOCK) if certain > SKEW_WARNING_S else ok(name, found)


BROKER_NAMES = ("broker", "broker.clock")


async def broker(url: str | None, keys: Path) -> list[Check]:
    """Look whether a broker takes an MQTT connection of ours, and which it is."""
    clock = skipped("broker.clock", "MQTT tells no time: compare with server and gateway")
    if url is None:
        return [skipped("broker", "no broker was named", "give --broker URL"), clock]
    try:
        # The settings first: they say what is wrong with a URL.
        settings = BrokerSettings(url, f"trellis-doctor-{secrets.token_hex(4)}", tls=operator_tls(url, keys))
        await _resolve(url)
        async with MqttBus(settings) as bus:
            await bus.wait_connected(CONNECT_S)
            version = await _broker_version(bus)
    except InvalidInput as error:
        return [failure("broker", str(error), "mend the URL or the keys"), clock]
    except TrellisError as error:
        return [
            failure("broker", str(error), "start it, or mend the URL: for trials `trellis broker`"),
            clock,
        ]
    return [ok("broker", f"{url} takes us: {version or 'it does not tell its version'}"), clock]


async def _broker_version(bus: MqttBus) -> str | None:
    try:
        async with asyncio.timeout(VERSION_S), bus.subscribe("$SYS/broker/version") as messages:
            async for message in messages:
                return message.payload.decode(errors="replace")[:80]
    except (TimeoutError, TrellisError):
        return None  # an access list may deny it, and not every broker has it
    return None


async def _resolve(url: str) -> None:
    """Return once the URL's host has an address; the name service may hang, and nothing else may with it.

    Raises:
        Unavailable: It has none, or the name service does not answer.
    """
    try:
        host = urlsplit(url).hostname
    except ValueError:
        return  # whoever uses the URL says what is wrong
    if not host:
        return
    try:
        async with asyncio.timeout(NAME_S):
            await aside(lambda: socket.getaddrinfo(host, None))
    except TimeoutError:
        raise Unavailable(f"{url}: the name service has no answer for {host!r} within {NAME_S:g} s") from None
    except (OSError, UnicodeError) as error:
        raise Unavailable(f"{url}: host {host!r} is not known: {error}") from None


def loopback_port(url: str | None) -> int | None:
    """Return the port of `url` if it is on this machine, None if it is elsewhere or none."""
    try:
        parts = urlsplit(url or "")
        return parts.port if parts.hostname and is_loopback(parts.hostname) else None
    except ValueError:
        return None
