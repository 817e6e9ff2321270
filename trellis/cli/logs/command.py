"""`trellis logs`: a task's log, of all machines in one."""

from __future__ import annotations

import asyncio
import os
import sys
from datetime import UTC, datetime
from typing import Annotated

import typer

from trellis import identifiers
from trellis.cli.logs.following import Following, Wanted, lines_of, stored
from trellis.cli.logs.lines import Level, Line, rendered
from trellis.cli.logs.since import moment
from trellis.cli.options import (
    DEFAULT_KEYS,
    DEFAULT_SERVER,
    KeysOption,
    ServerOption,
    server_client,
)
from trellis.cli.watching.command import open_bus
from trellis.foreign_text import harmless
from trellis.http.client import ServiceClient
from trellis.mqtt.messages import Bus
from trellis.service_options import BaseOption
from trellis.topics import DEFAULT_BASE, Topics

app = typer.Typer(name="logs")


@app.command()
def logs(
    task: Annotated[str, typer.Argument(metavar="TASK", help="The task's name.")],
    *,
    device: Annotated[str | None, typer.Option("--device", metavar="D", help="This device only.")] = None,
    region: Annotated[
        str | None, typer.Option("--region", metavar="R", help="This region's gateway and devices only.")
    ] = None,
    level: Annotated[
        Level, typer.Option("--level", case_sensitive=False, help="This level and those above.")
    ] = Level.DEBUG,
    lines: Annotated[
        int, typer.Option("--lines", min=1, max=10_000, help="How many of the past, the newest.")
    ] = 1000,
    since: Annotated[
        str | None,
        typer.Option(
            "--since", metavar="WHEN", help="Said since then: 10m, 2h, 1d ago, or a time as 2026-03-01T08:30."
        ),
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on until the task has ended, or Ctrl-C.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One line of JSON per log line.")] = False,
    server: ServerOption = DEFAULT_SERVER,
    broker: Annotated[
        str | None,
        typer.Option(
            "--broker",
            metavar="URL",
            help="With --follow: hear regions at once, and while the server is away (mqtts:// needs --keys).",
        ),
    ] = None,
    keys: KeysOption = DEFAULT_KEYS,
    base: BaseOption = DEFAULT_BASE,
) -> None:
    """Show what devices, gateways and the server said about a task, tracebacks included.

    \b
    Examples:
      trellis logs digits --level warning --since 2h
      trellis logs digits --device cam-7 --region eu-1 -f
      trellis logs digits --json | jq -r .message
    """
    identifiers.identifier(task, what="task")
    if device is not None:
        identifiers.identifier(device, what="device")
    if region is not None:
        identifiers.region(region)
    since_ms = moment(since, datetime.now(UTC)) if since is not None else 0
    wanted = Wanted(task, device, region, level, lines, since_ms)
    show = Shown(as_json)
    client = server_client(server, keys)
    if not follow:
        asyncio.run(_past(client, wanted, show))
        return
    bus = open_bus(broker, keys) if broker else None
    asyncio.run(_follow(client, bus, Topics(base), wanted, show))


class Shown:
    """Prints lines: for people, or as JSON."""

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json
        self._colours = sys.stdout.isatty() and "NO_COLOR" not in os.environ

    def __call__(self, line: Line) -> None:
        typer.echo(line.to_json() if self._as_json else rendered(line, colours=self._colours))


async def _past(client: ServiceClient, wanted: Wanted, show: Shown) -> None:
    async with client:
        found = lines_of(await stored(client, wanted), wanted)
    for line in found:
        show(line)
    if not found:
        typer.echo(f"nothing was said about task {wanted.task!r} that was asked for", err=True)


async def _follow(
    client: ServiceClient, bus: Bus | None, topics: Topics, wanted: Wanted, show: Shown
) -> None:
    following = Following(client, bus, topics, wanted, lambda text: typer.echo(harmless(text), err=True))
    async with client:
        await following.run(show)
