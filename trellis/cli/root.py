"""The root command: lazy, and the one place where options meet `trellis.toml` and the environment."""

from __future__ import annotations

import importlib
import inspect
import os
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import click
import typer.core
import typer.main
from typer.models import ArgumentInfo
from typer.utils import get_params_from_function

from trellis import __version__, config
from trellis.cli.option_specs import claim_variables, option_specs
from trellis.cli.table import ENTRIES, Entry
from trellis.errors import ConfigError
from trellis.nearest import did_you_mean

_HELP_ASKED = "trellis.help_asked"


class LazyGroup(click.Group):
    """A group that imports a command's module when the command is used, and lists them all without."""

    def __init__(self, entries: Iterable[Entry], **settings: Any) -> None:
        super().__init__(**settings)
        self._entries = {entry.name: entry for entry in entries}

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self._entries)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = self._entries.get(cmd_name)
        return load_command(entry) if entry else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if not name.startswith("-") and name not in self._entries:
            hint = did_you_mean(name, self._entries, before=": ")
            raise click.UsageError(f"there is no command {name!r}{hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(entry.name, entry.summary) for entry in self._entries.values()])

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        # Help must come even where trellis.toml is broken.
        ctx.meta[_HELP_ASKED] = "--help" in args
        return super().parse_args(ctx, args)


@cache
def load_command(entry: Entry) -> click.Command:
    """Import what implements `entry` and return its command, every option with its variable."""
    commands = [_converted(entry.name, source) for source in entry.sources]
    first, *more = commands
    for other in more:
        if not isinstance(first, click.Group) or not isinstance(other, click.Group):
            raise TypeError(f"command {entry.name!r}: only groups can be merged, of {entry.sources}")
        for name, command in other.commands.items():
            first.add_command(command, name)
    claim_variables(first)
    return first


def _converted(name: str, source: str) -> click.Command:
    module, _, attribute = source.partition(":")
    app: typer.Typer = getattr(importlib.import_module(module), attribute)
    # Plain help: it comes without importing rich, and reads the same in a pipe. Typer asks HAS_RICH, not the
    # mode, whether to escape brackets for rich.
    app.rich_markup_mode = None
    typer.core.HAS_RICH = False
    app.suggest_commands = False  # click 8.5 suggests by itself; both would say it twice
    app._add_completion = False
    command = typer.main.get_command(app)
    command.name = name
    _explain_arguments(command)
    return command


def _explain_arguments(command: click.Command) -> None:
    """Give arguments their help back: click 8.5 has one of its own, with which it overwrites typer's."""
    if isinstance(command, click.Group):
        for inner in command.commands.values():
            _explain_arguments(inner)
    elif command.callback is not None:
        declared = get_params_from_function(inspect.unwrap(command.callback))
        for argument in command.params:
            given = declared[argument.name].default if argument.name in declared else None
            if isinstance(argument, typer.core.TyperArgument) and isinstance(given, ArgumentInfo):
                argument.help = given.help
        # Typer lists them; click 8.5 would do so once more.
        command.format_arguments = _nothing  # type: ignore[method-assign, assignment]


def _nothing(_: click.Context, __: click.HelpFormatter) -> None:
    pass


def every_command() -> dict[str, click.Command]:
    """Import all commands; those whose packages are not installed here are left out."""
    found: dict[str, click.Command] = {}
    for entry in ENTRIES:
        try:
            found[entry.name] = load_command(entry)
        except ImportError:
            continue
    return found


def _known_elsewhere() -> frozenset[str]:
    return frozenset(spec.name for command in every_command().values() for spec in option_specs(command))


def _show_version(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        click.echo(f"trellis {__version__}")
        ctx.exit()


@click.pass_context
def _configure(ctx: click.Context, config_file: Path | None) -> None:
    if ctx.meta[_HELP_ASKED] or ctx.invoked_subcommand is None:
        return
    command = root.get_command(ctx, ctx.invoked_subcommand)
    if command is None:
        return
    try:
        _apply_settings(ctx, ctx.invoked_subcommand, command, config_file)
    except ConfigError:
        if not any(entry.examines_settings for entry in ENTRIES if entry.name == ctx.invoked_subcommand):
            raise


def _apply_settings(ctx: click.Context, name: str, command: click.Command, config_file: Path | None) -> None:
    known = frozenset(spec.name for spec in option_specs(command))
    config.check_environment(os.environ, known, _known_elsewhere)
    settings = config.load(config_file)
    if settings is not None:
        settings.check_sections(entry.name for entry in ENTRIES)
        ctx.default_map = {name: _defaults(settings, name, command)}


def _defaults(settings: config.ConfigFile, section: str, command: click.Command) -> dict[str, Any]:
    specs = option_specs(command)
    chosen = settings.defaults(section, specs, _known_elsewhere)
    return _default_map(command, chosen)


def _default_map(command: click.Command, chosen: dict[str, config.Value]) -> dict[str, Any]:
    values: dict[str, Any] = {
        spec.parameter: chosen[spec.name] for spec in option_specs(command, deep=False) if spec.name in chosen
    }
    if isinstance(command, click.Group):
        for name, inner in command.commands.items():
            values[name] = _default_map(inner, chosen)
    return values


def _parameters() -> Sequence[click.Parameter]:
    return (
        click.Option(
            ["--config", "config_file"],
            type=click.Path(path_type=Path, dir_okay=False),
            envvar="TRELLIS_CONFIG",
            metavar="FILE",
            help="Settings to read instead of trellis.toml in the working folder.",
        ),
        click.Option(
            ["--version"],
            is_flag=True,
            is_eager=True,
            expose_value=False,
            callback=_show_version,
            help="Show the version and exit.",
        ),
    )


root = LazyGroup(
    ENTRIES,
    name="trellis",
    callback=_configure,
    params=list(_parameters()),
    help="""Federated learning for fleets of edge devices: Flower for tensors, MQTT for everything else.

    \b
    Example:
      trellis demo
      trellis init && trellis task validate task.yaml

    An option also comes from the environment (--api-port from TRELLIS_API_PORT) and from trellis.toml
    (api-port = 8081 below [gateway], or below [common] for every command). What is typed comes first, then
    the environment, then the file.""",
)
