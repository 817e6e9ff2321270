"""`trellis task post`, `run`, `list`, `show` and `cancel`: a task where it runs."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from trellis import identifiers
from trellis.cli.options import (
    DEFAULT_BROKER,
    DEFAULT_KEYS,
    DEFAULT_SERVER,
    BrokerOption,
    JsonOption,
    KeysOption,
    ServerOption,
    gateway_client,
    print_json,
    server_client,
)
from trellis.cli.task import delivery, following, tables
from trellis.cli.task.delivery import Delivered, SignedTask
from trellis.cli.watching.command import open_bus
from trellis.descriptor import TaskDescriptor
from trellis.errors import Refused, Unavailable
from trellis.foreign_text import harmless, harmless_line, json_text
from trellis.payloads import TaskState
from trellis.service_options import BaseOption
from trellis.topics import DEFAULT_BASE, Topics

app = typer.Typer(name="task")

_File = Annotated[Path, typer.Argument(metavar="FILE", help="Task descriptor, YAML or JSON.")]
_Task = Annotated[str, typer.Argument(metavar="TASK", help="The task's name.")]
_Gateways = Annotated[
    list[str] | None,
    typer.Option(
        "--gateway",
        metavar="URL",
        help="A gateway's HTTP API; repeatable. Without it the server is asked for them.",
    ),
]


@app.command()
def post(
    file: _File,
    *,
    gateway: _Gateways = None,
    server: ServerOption = DEFAULT_SERVER,
    keys: KeysOption = DEFAULT_KEYS,
    as_json: JsonOption = False,
) -> None:
    """Post a task to its regions' gateways, which hand it on to their devices and to the gateways below them.

    It starts no rounds: they begin once the server has the task, too (trellis task run, server --task).

    \b
    Examples:
      trellis task post task.yaml
      trellis task post task.yaml --gateway http://127.0.0.1:8081
    """
    task = delivery.read_signed(file, keys)
    _report(asyncio.run(_post(task, gateway or [], server, keys)), task.descriptor.task, as_json)
    if (lack := asyncio.run(delivery.lack_at_server(task.descriptor, server, keys))) is not None:
        remedy = f"`trellis task run {file}` or `trellis server --task {file}` starts them"
        typer.echo(harmless(f"no round begins yet: {lack}; {remedy}"), err=True)


@app.command()
def run(
    file: _File,
    *,
    server: ServerOption = DEFAULT_SERVER,
    gateway: Annotated[
        list[str] | None,
        typer.Option(
            "--gateway",
            metavar="REGION=URL",
            help="A region's gateway; repeatable. Without it the server is asked for them.",
        ),
    ] = None,
    broker: BrokerOption = DEFAULT_BROKER,
    keys: KeysOption = DEFAULT_KEYS,
    base: BaseOption = DEFAULT_BASE,
    watch: Annotated[bool, typer.Option("--watch/--no-watch", help="Follow it to its end.")] = True,
    as_json: JsonOption = False,
) -> None:
    """Sign a task, post it to the server and to its regions' gateways, and follow it to its end.

    Exit code 0 if it succeeded, 1 if it failed or was canceled.

    \b
    Examples:
      trellis task run task.yaml
      trellis task run task.yaml --server https://10.0.0.5:8080 --no-watch
    """
    task = delivery.read_signed(file, keys)
    topics = Topics(base)
    # What cannot be followed for its options is not started.
    live = following.Live(open_bus(broker, keys), topics) if watch and not as_json else None
    named = delivery.gateways_by_region(gateway or [], task.descriptor.regions)
    delivered = asyncio.run(delivery.deliver(task, server, named, keys))
    if not watch:
        _report(delivered, task.descriptor.task, as_json)
        return
    try:
        ending = asyncio.run(following.until_ended(task.descriptor.task, server, keys, live))
    except KeyboardInterrupt:
        name = task.descriptor.task
        typer.echo(f"task {name!r} goes on: `trellis task cancel {name}` calls it off", err=True)
        raise
    if as_json:
        print_json({**ending.view, "accuracy": ending.accuracy, "model": _model_url(ending, server)})
    else:
        typer.echo(harmless(_ending_text(ending, server)))
    raise typer.Exit(0 if ending.state is TaskState.SUCCEEDED else 1)


@app.command("list")
def list_tasks(
    *,
    server: ServerOption = DEFAULT_SERVER,
    gateway: Annotated[
        str | None, typer.Option("--gateway", metavar="URL", help="Ask this gateway instead of the server.")
    ] = None,
    keys: KeysOption = DEFAULT_KEYS,
    as_json: JsonOption = False,
) -> None:
    """List the tasks that the server has, or a gateway: state, finished rounds, devices, elapsed time.

    \b
    Examples:
      trellis task list
      trellis task list --gateway http://127.0.0.1:8081 --json
    """
    answer = asyncio.run(_get("/v1/tasks", server, gateway, keys))
    if as_json:
        print_json(answer)
    else:
        typer.echo(tables.tasks(answer.get("tasks", [])))


@app.command()
def show(
    task: _Task,
    *,
    server: ServerOption = DEFAULT_SERVER,
    gateway: Annotated[
        str | None, typer.Option("--gateway", metavar="URL", help="Ask this gateway instead of the server.")
    ] = None,
    keys: KeysOption = DEFAULT_KEYS,
    as_json: JsonOption = False,
) -> None:
    """Show a task: its state, its rounds, and what became of it on each device.

    \b
    Example:
      trellis task show digits
    """
    identifiers.identifier(task, what="task")
    answer = asyncio.run(_get(f"/v1/tasks/{task}", server, gateway, keys))
    if as_json:
        print_json(answer)
    else:
        typer.echo(tables.task(answer))


@app.command()
def cancel(
    task: _Task,
    *,
    server: ServerOption = DEFAULT_SERVER,
    gateway: _Gateways = None,
    keys: KeysOption = DEFAULT_KEYS,
    as_json: JsonOption = False,
) -> None:
    """Call a task off, at the server and at its regions' gateways; devices stop within a batch.

    \b
    Example:
      trellis task cancel digits
    """
    identifiers.identifier(task, what="task")
    _report(asyncio.run(_cancel(task, gateway or [], server, keys)), task, as_json)


async def _post(task: SignedTask, gateways: list[str], server: str, keys: Path) -> list[Delivered]:
    named = _by_url(gateways)
    if not named:
        regions = task.descriptor.regions
        named = await delivery.discover(server, regions, keys, wait_s=delivery.GATEWAYS_S)
    return await delivery.post_to_gateways(task, named, keys)


async def _cancel(task: str, gateways: list[str], server: str, keys: Path) -> list[Delivered]:
    named = _by_url(gateways)
    at_server: list[TaskDescriptor] = []
    try:
        at_server.append(await delivery.held_at_server(task, server, keys))
    except (Unavailable, Refused) as error:
        if isinstance(error, Refused) and error.code != "unknown":
            raise
        if not named and isinstance(error, Unavailable):
            raise Unavailable(f"{error}; or name a gateway with --gateway") from None
        typer.echo(f"not told to the server: {harmless(str(error))}", err=True)
    asked = named or await delivery.known_gateways(server, keys)
    held = at_server + await delivery.held_at_gateways(task, asked, keys, required=not at_server)
    if not held:
        raise Refused(
            "unknown", f"{server} sees no gateway that is online: name those of {task!r} with --gateway"
        )
    off = delivery.signed(delivery.called_off(held), keys)
    regions = off.descriptor.regions
    missing = [] if named else [region for region in regions if region not in asked]
    delivered = [await delivery.cancel_at_server(off, server, keys)] if at_server else []
    told = named or {region: url for region, url in asked.items() if region in regions}
    delivered += await delivery.post_to_gateways(off, told, keys)
    if missing:
        raise delivery.no_gateway(server, missing)
    return delivered


async def _get(path: str, server: str, gateway: str | None, keys: Path) -> dict[str, Any]:
    async with gateway_client(gateway, keys) if gateway else server_client(server, keys) as client:
        return await client.get(path)


def _by_url(gateways: Iterable[str]) -> dict[str, str]:
    return {url: url for url in gateways}


def _report(delivered: list[Delivered], task: str, as_json: bool) -> None:
    if as_json:
        rows = [{"to": one.to, "url": one.url, "answer": dict(one.answer)} for one in delivered]
        typer.echo(json_text({"task": task, "delivered": rows}))
        return
    for one in delivered:
        where = one.url if one.to == one.url else f"{one.to} at {one.url}"
        taken = f"task {task!r}, revision {one.answer.get('revision', '?')}: taken by {where}"
        typer.echo(harmless_line(taken))


def _model_url(ending: following.Ending, server: str) -> str | None:
    return f"{server}/v1/tasks/{ending.task}/model" if ending.state is TaskState.SUCCEEDED else None


def _ending_text(ending: following.Ending, server: str) -> str:
    lines = [f"task {ending.task!r} {ending.state}" + (f": {ending.reason}" if ending.reason else "")]
    if ending.accuracy is not None:
        lines.append(f"accuracy: {ending.accuracy:.2%}")
    if ending.state is TaskState.SUCCEEDED:
        lines.append(
            f"model:    trellis model get {ending.task} -o {ending.task}.safetensors --server {server}"
        )
    return "\n".join(lines)
