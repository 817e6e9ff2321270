"""`trellis doctor`: looks at everything at once, and says what to do."""

from __future__ import annotations

import asyncio
import os
import sys
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer

from trellis.cli.doctor import keys as key_checks
from trellis.cli.doctor import machine, peers, ports, services
from trellis.cli.doctor import settings as setting_checks
from trellis.cli.doctor.check import Check, Probe, Status, blocking, examine
from trellis.cli.options import DEFAULT_KEYS, JsonOption, KeysOption, print_json
from trellis.cli.root import every_command
from trellis.foreign_text import harmless, harmless_line

DEADLINE_S = 10.0
"""With interpreter, imports and goodbyes the command ends within 15 s, whatever does not answer."""

_COLOURS = {
    Status.OK: "green",
    Status.WARNING: "yellow",
    Status.FAILURE: "red",
    Status.SKIPPED: "bright_black",
}
_WORDS = {Status.FAILURE: "failures", Status.WARNING: "warnings", Status.OK: "ok", Status.SKIPPED: "skipped"}

app = typer.Typer(name="doctor")


@dataclass(frozen=True)
class Asked:
    """What to look at; None is skipped."""

    server: str | None
    gateway: str | None
    broker: str | None
    keys: Path
    keys_given: bool
    runs: Path
    state: Path
    config_file: Path | None


@app.command()
def doctor(
    ctx: typer.Context,
    *,
    server: Annotated[
        str | None, typer.Option("--server", metavar="URL", help="The central server's HTTP API.")
    ] = None,
    gateway: Annotated[
        str | None, typer.Option("--gateway", metavar="URL", help="A gateway's HTTP API.")
    ] = None,
    broker: Annotated[str | None, typer.Option("--broker", metavar="URL", help="MQTT broker.")] = None,
    keys: KeysOption = DEFAULT_KEYS,
    runs: Annotated[Path, typer.Option("--runs", metavar="DIR", help="The server's folder.")] = Path("runs"),
    state: Annotated[
        Path, typer.Option("--state", metavar="DIR", help="The gateway's or device's folder.")
    ] = Path("state"),
    as_json: JsonOption = False,
) -> None:
    """Look at this machine and at the services named, and say what to do.

    Exit code 1 if anything has failed. What is not named is skipped.

    \b
    Examples:
      trellis doctor
      trellis doctor --server https://10.0.0.5:8080 --broker mqtts://10.0.0.5:8883 --keys keys
    """
    source = ctx.get_parameter_source("keys")
    asked = Asked(
        server=server,
        gateway=gateway,
        broker=broker,
        keys=keys,
        keys_given=source is not None and source.name != "DEFAULT",
        runs=runs,
        state=state,
        config_file=ctx.find_root().params.get("config_file"),
    )
    checks = asyncio.run(_examined(asked))
    if as_json:
        print_json({"checks": [asdict(check) for check in checks]})
    else:
        typer.echo(_report(checks, colours=sys.stdout.isatty() and "NO_COLOR" not in os.environ))
    raise typer.Exit(1 if any(check.status is Status.FAILURE for check in checks) else 0)


async def _examined(asked: Asked) -> list[Check]:
    checks = await examine(_probes(asked), deadline_s=DEADLINE_S)
    answered = {check.name for check in checks if check.status in {Status.OK, Status.WARNING}}
    urls = {"server": asked.server, "gateway": asked.gateway, "broker": asked.broker}
    named = {name: services.loopback_port(url) for name, url in urls.items()}
    due = ports.due(asked.config_file, every_command(), ports.Named(**named))
    # After them: who answers on a port says whose it is.
    answering = {port for name, port in named.items() if name in answered and port is not None}
    return [*checks, *machine.ports(due, answering)]


def _probes(asked: Asked) -> list[Probe]:
    central = services.Service("server", asked.server, "trellis server")
    regional = services.Service("gateway", asked.gateway, "trellis gateway")
    urls = {"broker": asked.broker, "server": asked.server, "gateway": asked.gateway}
    return [
        blocking(("python", "flwr"), machine.python),
        blocking((f"extra.{package}" for package in machine.EXTRAS), machine.extras),
        blocking(setting_checks.NAMES, lambda: setting_checks.settings(asked.config_file, every_command())),
        blocking(key_checks.NAMES, lambda: key_checks.keys(asked.keys, given=asked.keys_given)),
        Probe(services.BROKER_NAMES, lambda: services.broker(asked.broker, asked.keys)),
        Probe(central.names, lambda: services.service(central, asked.keys)),
        Probe(regional.names, lambda: services.service(regional, asked.keys)),
        *(_shown_by(name, url, asked.keys) for name, url in urls.items()),
        blocking(("disk.runs",), lambda: [machine.disk("disk.runs", asked.runs)]),
        blocking(("disk.state",), lambda: [machine.disk("disk.state", asked.state)]),
        blocking(("memory",), machine.memory),
    ]


def _shown_by(who: str, url: str | None, keys: Path) -> Probe:
    name = f"{who}.certificate"

    async def look() -> list[Check]:
        return [await peers.certificate(name, url, keys)]

    return Probe((name,), look)


def _report(checks: list[Check], *, colours: bool) -> str:
    width = max(len(check.name) for check in checks)
    lines: list[str] = []
    for check in checks:
        status = f"{check.status:<8}"
        if colours:
            status = typer.style(status, fg=_COLOURS[check.status])
        first, *more = harmless(check.found).splitlines() or [""]
        indent = " " * (8 + width + 4)
        lines += [f"{status}  {check.name:<{width}}  {first}", *(f"{indent}{line}" for line in more)]
        if check.remedy:
            lines.append(f"{indent}-> {harmless_line(check.remedy)}")
    counts = Counter(check.status for check in checks)
    summary = ", ".join(f"{counts[status]} {word}" for status, word in _WORDS.items() if counts[status])
    return "\n".join([*lines, "", summary])
