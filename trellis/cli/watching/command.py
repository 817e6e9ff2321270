"""`trellis watch`: what the fleet says on MQTT, live."""

from __future__ import annotations

import asyncio
import json
import secrets
from pathlib import Path
from typing import Annotated, Any

import typer

from trellis import identifiers
from trellis.cli.options import (
    DEFAULT_BROKER,
    DEFAULT_KEYS,
    BrokerOption,
    KeysOption,
    operator_tls,
)
from trellis.cli.watching.follower import Follower
from trellis.cli.watching.screen import Screen
from trellis.errors import ConfigError, PayloadError, Unavailable
from trellis.foreign_text import json_text
from trellis.mqtt.bus import MqttBus
from trellis.mqtt.messages import Bus, BusMessage
from trellis.mqtt.reconnecting import FLEET
from trellis.mqtt.settings import BrokerSettings
from trellis.service_options import BaseOption
from trellis.topics import DEFAULT_BASE, Topics

CONNECT_S = 4.0

app = typer.Typer(name="watch")


@app.command()
def watch(
    *,
    region: Annotated[str | None, typer.Option("--region", metavar="R", help="This region only.")] = None,
    task: Annotated[str | None, typer.Option("--task", metavar="T", help="This task only.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One line of JSON per message: topic, retained, payload.")
    ] = False,
    broker: BrokerOption = DEFAULT_BROKER,
    keys: KeysOption = DEFAULT_KEYS,
    base: BaseOption = DEFAULT_BASE,
) -> None:
    """Watch rounds, gateways and devices live, until Ctrl-C.

    \b
    Examples:
      trellis watch --task digits
      trellis watch --region eu-1 --json | jq .payload.state
    """
    if region is not None:
        identifiers.region(region)
    if task is not None:
        identifiers.identifier(task, what="task")
    asyncio.run(_watch(open_bus(broker, keys), Topics(base), region, task, as_json))


def open_bus(broker: str, keys: Path) -> MqttBus:
    """Return a bus of our own, not entered yet."""
    tls = operator_tls(broker, keys)
    settings = BrokerSettings(broker, client_id=f"trellis-watch-{secrets.token_hex(4)}", tls=tls)
    return MqttBus(settings, limits=FLEET)


def filters(topics: Topics, region: str | None) -> tuple[str, ...]:
    """Return what to subscribe to: everything, or one region and the centre."""
    if region is None:
        return (f"{topics.base}/#",)
    return (f"{topics.base}/{identifiers.CENTRAL}/#", f"{topics.base}/{region}/#")


async def connect(bus: Bus) -> None:
    """Return once `bus` is connected.

    Raises:
        ConfigError: Nobody answers; the message says how to start a broker.
    """
    try:
        await bus.wait_connected(CONNECT_S)
    except Unavailable as error:
        raise ConfigError(str(error)) from None


async def _watch(bus: MqttBus, topics: Topics, region: str | None, task: str | None, as_json: bool) -> None:
    async with bus:
        await connect(bus)
        async with bus.subscribe(*filters(topics, region)) as messages:
            if as_json:
                async for message in messages:
                    if _concerns(topics, message, task):
                        typer.echo(json_text(json_line(message)))
                return
            with Screen(region=region, task=task) as screen:
                await Follower(topics, screen).run(messages)


def json_line(message: BusMessage) -> dict[str, Any]:
    """Return a message as one JSON object; its payload is parsed, text if it is no JSON, null if empty."""
    payload: Any = None
    if message.payload:
        text = message.payload.decode(errors="replace")
        try:
            payload = json.loads(text)
        except (ValueError, RecursionError):
            payload = text
    return {"topic": message.topic, "retained": message.retain, "payload": payload}


def _concerns(topics: Topics, message: BusMessage, task: str | None) -> bool:
    if task is None:
        return True
    try:
        return topics.parse(message.topic).task in ("", task)
    except PayloadError:
        return False
