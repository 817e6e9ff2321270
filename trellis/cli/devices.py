"""`trellis devices`: a region's devices, as its gateway knows them."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated, Any

import typer

from trellis.cli.options import (
    DEFAULT_GATEWAY,
    DEFAULT_KEYS,
    JsonOption,
    KeysOption,
    gateway_client,
    print_json,
)
from trellis.cli.task import tables

app = typer.Typer(name="devices")


@app.command()
def devices(
    *,
    gateway: Annotated[
        str, typer.Option("--gateway", metavar="URL", help="The gateway's HTTP API (https:// needs --keys).")
    ] = DEFAULT_GATEWAY,
    keys: KeysOption = DEFAULT_KEYS,
    as_json: JsonOption = False,
) -> None:
    """List a region's devices: online or not, what they can, and what they do.

    \b
    Examples:
      trellis devices
      trellis devices --gateway https://10.0.1.5:8081 --json
    """
    answer = asyncio.run(_ask(gateway, keys))
    if as_json:
        print_json(answer)
    else:
        typer.echo(tables.devices(answer.get("devices", [])))


async def _ask(gateway: str, keys: Path) -> dict[str, Any]:
    async with gateway_client(gateway, keys) as client:
        return await client.get("/v1/devices")
