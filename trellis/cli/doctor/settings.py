"""Whether `trellis.toml` and the `TRELLIS_*` variables say what some command understands."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import click

from trellis import config
from trellis.cli.doctor.check import Check, failure, ok, skipped
from trellis.cli.option_specs import option_specs
from trellis.errors import ConfigError

NAMES = ("settings.file", "settings.environment")


def settings(file: Path | None, commands: Mapping[str, click.Command]) -> list[Check]:
    """Look at the file, or `trellis.toml` of the working folder, and at the environment.

    Args:
        commands: All of them, by name: what may be set is what they have as options.
    """
    return [_file(file, commands), _environment(os.environ, commands)]


def _file(file: Path | None, commands: Mapping[str, click.Command]) -> Check:
    name = "settings.file"
    try:
        found = config.load(file)
        if found is None:
            return skipped(name, f"no {config.FILE_NAME} is in the working folder")
        found.check_sections(commands)
    except ConfigError as error:
        return failure(name, str(error), "mend the file")
    faults: list[str] = []
    for section in found.sections:
        # [common] alone is checked with any command; its values may fit only some commands.
        command = commands.get(section)
        try:
            found.defaults(section, option_specs(command) if command else [], lambda: _options(commands))
        except ConfigError as error:
            faults += [str(fault) for fault in error.faults]
    if faults:
        return failure(name, f"{found.path}: {'; '.join(dict.fromkeys(faults))}", "mend the file")
    return ok(name, f"{found.path}: {_listed(found.sections)}")


def _environment(environment: Mapping[str, str], commands: Mapping[str, click.Command]) -> Check:
    name = "settings.environment"
    given = sorted(one for one in environment if one.startswith(config.PREFIX))
    faults = [str(fault) for fault in _unknown(environment, commands)]
    faults += [fault for variable in given if (fault := _wrong(variable, environment[variable], commands))]
    if faults:
        return failure(name, "; ".join(faults), "mend or unset them")
    if not given:
        return skipped(name, f"no variable begins with {config.PREFIX}")
    return ok(name, _listed(given))


def _unknown(environment: Mapping[str, str], commands: Mapping[str, click.Command]) -> Iterable[object]:
    try:
        config.check_environment(environment, (), lambda: _options(commands))
    except ConfigError as error:
        return error.faults
    return ()


def _wrong(variable: str, value: str, commands: Mapping[str, click.Command]) -> str:
    """Return what is wrong with a variable's value if no command can use it, or `""`."""
    problems = [
        spec.check(value)
        for command in commands.values()
        for spec in option_specs(command)
        if config.variable(spec.name) == variable and not spec.multiple
    ]
    if problems and all(problems):
        return f"{variable}: {problems[0]}"
    return ""


def _options(commands: Mapping[str, click.Command]) -> frozenset[str]:
    return frozenset(spec.name for command in commands.values() for spec in option_specs(command))


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "empty"
