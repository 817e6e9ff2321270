"""`trellis model get`: fetches a trained model from the server. Its siblings are in `models.command`."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from trellis import identifiers
from trellis.cli.options import (
    DEFAULT_KEYS,
    DEFAULT_SERVER,
    JsonOption,
    KeysOption,
    ServerOption,
    print_json,
    server_client,
)
from trellis.files import writable_file

app = typer.Typer(name="model", help="Fetch, evaluate and list models.", no_args_is_help=True)


@app.callback()
def model() -> None:
    """Fetch, evaluate and list models."""


@app.command()
def get(
    task: Annotated[str, typer.Argument(metavar="TASK", help="The task that trained it.")],
    *,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="Where the model goes.")],
    server: ServerOption = DEFAULT_SERVER,
    keys: KeysOption = DEFAULT_KEYS,
    as_json: JsonOption = False,
) -> None:
    """Fetch a trained model from the server, as safetensors.

    \b
    Example:
      trellis model get digits -o digits.safetensors
    """
    identifiers.identifier(task, what="task")
    output = writable_file(output, option="--output")
    written = asyncio.run(_fetch(task, output, server, keys))
    if as_json:
        print_json({"task": task, "file": str(output), "bytes": written})
    else:
        typer.echo(f"{output}: {written} bytes; try it with `trellis model evaluate {output} --data SOURCE`")


async def _fetch(task: str, output: Path, server: str, keys: Path) -> int:
    async with server_client(server, keys) as client:
        return await client.download(f"/v1/tasks/{task}/model", output)
