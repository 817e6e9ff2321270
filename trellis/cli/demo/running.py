"""What `trellis demo` does: a whole federation on this machine, from its first process to its last."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shlex
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from trellis.cli.demo.plan import FEW, DemoPlan
from trellis.cli.demo.stage import Stage
from trellis.cli.watching.screen import Screen
from trellis.errors import ConfigError
from trellis.files import output_file, write_atomically


def run(plan: DemoPlan, *, data: str, keep: bool, summary: Path | None) -> None:
    """Play the demo to its end, or to a signal's, and tell what came of it.

    Args:
        plan: What it does.
        data: Its data, as they were asked for.
        keep: Whether the folder with logs, keys and states stays.
        summary: Where to write the summary, as JSON.
    """
    received: list[signal.Signals] = []
    try:
        found = asyncio.run(_supervised(plan, keep, received))
    except asyncio.CancelledError:
        typer.echo("stopped: nothing of the demo runs any more", err=True)
        raise typer.Exit(128 + received[0] if received else 1) from None
    if summary is not None:
        with output_file(summary):
            write_atomically(summary, f"{json.dumps(found, indent=2)}\n".encode())
    typer.echo(_told(found, data))


async def _supervised(plan: DemoPlan, keep: bool, received: list[signal.Signals]) -> dict[str, Any]:
    playing = asyncio.ensure_future(_play(plan, keep))

    def on_signal(number: signal.Signals) -> None:
        # Once is enough: a second Ctrl-C must not interrupt the clearing up, which takes seconds at most.
        if not received:
            received.append(number)
            playing.cancel()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, on_signal, number)
    return await playing


async def _play(plan: DemoPlan, keep: bool) -> dict[str, Any]:
    folder = Path(tempfile.mkdtemp(prefix="trellis-demo-"))
    try:
        with _result_folder() as result:
            return await Stage(plan, folder, result).play(Screen())
    finally:
        if keep:
            typer.echo(f"kept {folder}: logs/, keys/, runs/ and state/", err=True)
        else:
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _result_folder() -> Iterator[Path]:
    """Yield a new folder for the result; after a failure just what was made here is removed."""
    runs = Path("runs")
    found = runs.exists()
    result = _make_result_folder(runs)
    try:
        yield result
    except BaseException:
        shutil.rmtree(result, ignore_errors=True)
        if not found:
            with contextlib.suppress(OSError):
                runs.rmdir()  # only if it is empty: another demo may be at work in it
        raise


def _make_result_folder(runs: Path) -> Path:
    """Return a new folder below `runs`, of this demo alone: two may start in the same second.

    Raises:
        ConfigError: It cannot be made.
    """
    name = f"demo-{time.strftime('%Y%m%d-%H%M%S')}"
    number = 1
    while True:
        folder = runs / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            number += 1
        except OSError as error:
            raise ConfigError(f"folder {str(folder)!r}", f"cannot be made: {error.strerror}") from None
        else:
            return folder


def _told(found: dict[str, Any], data: str) -> str:
    model = found["model"]
    lines = [
        "",
        f"accuracy   {found['accuracy']:.2%} on data that no device had, {found['rounds']} rounds, "
        f"{found['seconds']:.0f} s",
        *_trained_by(found["devices"]),
        f"model      {model}",
        f"try it     trellis model evaluate {model} --data {shlex.quote(data)}",
        f"load it    safetensors.numpy.load_file({model!r})",
    ]
    return "\n".join(lines)


def _trained_by(devices: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return which devices trained with which backend, a line for each backend."""
    by_backend: dict[str, list[str]] = {}
    for one in devices:
        by_backend.setdefault(one["backend"] or "unknown", []).append(f"{one['region']}/{one['device']}")
    return [
        f"{backend:<10} {', '.join(names[:FEW])}"
        + (f" and {len(names) - FEW} more" if len(names) > FEW else "")
        for backend, names in by_backend.items()
    ]
