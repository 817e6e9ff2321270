"""Reads a command's options off it, so that a file or the environment can be checked against them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import click

from trellis.config import OptionSpec, Value, variable


def option_specs(command: click.Command, *, deep: bool = True) -> list[OptionSpec]:
    """Return the options of `command`, and (`deep`) those of its sub-commands; each name once."""
    found = {spec.name: spec for spec in _own(command)}
    if deep and isinstance(command, click.Group):
        for inner in command.commands.values():
            for spec in option_specs(inner):
                found.setdefault(spec.name, spec)
    return list(found.values())


def claim_variables(command: click.Command) -> None:
    """Every option of `command` and its sub-commands also comes from `TRELLIS_<OPTION>`."""
    for option in _options(command):
        if option.envvar is None:
            option.envvar = variable(_long_name(option))
            option.show_envvar = False  # `trellis --help` says it once for all
    if isinstance(command, click.Group):
        for inner in command.commands.values():
            claim_variables(inner)


def _own(command: click.Command) -> Iterator[OptionSpec]:
    for option in _options(command):
        yield OptionSpec(
            name=_long_name(option),
            parameter=option.name or "",
            kind=_kind(option),
            multiple=option.multiple or option.nargs != 1,
            check=_checker(option),
        )


def _options(command: click.Command) -> Iterator[click.Option]:
    for parameter in command.params:
        if isinstance(parameter, click.Option) and parameter.name != "help":
            yield parameter


def _long_name(option: click.Option) -> str:
    return next((name for name in option.opts if name.startswith("--")), option.opts[0]).lstrip("-")


def _kind(option: click.Option) -> type[bool] | type[int] | type[float] | type[str]:
    if option.is_flag:
        return bool
    if isinstance(option.type, click.types.IntParamType):
        return int
    if isinstance(option.type, click.types.FloatParamType):
        return float
    return str


def _checker(option: click.Option) -> Callable[[Value], str]:
    def check(value: Value) -> str:
        try:
            for item in value if isinstance(value, list) else [value]:
                option.type.convert(item, option, None)
        except click.BadParameter as error:
            return error.message.rstrip(".")
        return ""

    return check
