"""Ports that services of ours would take on this machine: those of the settings, or the default ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from trellis import config
from trellis.cli.broker import PLAIN_PORT, TLS_PORT
from trellis.cli.option_specs import option_specs
from trellis.errors import ConfigError

_SERVICES = ("server", "gateway")


@dataclass(frozen=True)
class Named:
    """Ports of this machine where services were named; None: none was, or it is elsewhere."""

    server: int | None = None
    gateway: int | None = None
    broker: int | None = None


def due(file: Path | None, commands: Mapping[str, click.Command], named: Named) -> dict[int, str]:
    """Return the ports, each with what it is for; what was named goes before what is set."""
    found: dict[int, str] = {}
    for port, purpose in _due(_settings(file), commands, named):
        found[port] = f"{found[port]}; {purpose}" if port in found else purpose
    return found


def _due(
    settings: config.ConfigFile | None, commands: Mapping[str, click.Command], named: Named
) -> Iterator[tuple[int, str]]:
    given = {"server": named.server, "gateway": named.gateway}
    for service in _SERVICES:
        values = _values(service, settings, commands)
        # Where it was named at another port than it is set, nothing is known of its front.
        if (front := values.get("front_port")) and given[service] in {None, values.get("api_port")}:
            yield front, f"{service}'s front, --front-port"
        if api := given[service] or values.get("api_port"):
            yield api, f"{service} API, --api-port"
    values = _values("broker", settings, commands)
    encrypted = values.get("keys") is not None and not values.get("insecure")
    yield named.broker or values.get("port") or (TLS_PORT if encrypted else PLAIN_PORT), "broker"


def _settings(file: Path | None) -> config.ConfigFile | None:
    try:
        return config.load(file)
    except ConfigError:
        return None  # it is told elsewhere


def _values(
    name: str, settings: config.ConfigFile | None, commands: Mapping[str, click.Command]
) -> dict[str, Any]:
    """Return what a command would take if it were started here with nothing typed."""
    command = commands.get(name)
    if command is None:
        return {}
    specs = option_specs(command)
    known = frozenset(spec.name for other in commands.values() for spec in option_specs(other))
    try:
        chosen = settings.defaults(name, specs, lambda: known) if settings is not None else {}
    except ConfigError:
        chosen = {}
    by_parameter = {spec.parameter: chosen[spec.name] for spec in specs if spec.name in chosen}
    return command.make_context(name, [], resilient_parsing=True, default_map=by_parameter).params
