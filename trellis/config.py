"""Where settings come from besides what is typed: `trellis.toml` and variables that start with `TRELLIS_`.

    [common]                  applies to every command that has the option
    keys = "keys"

    [gateway]                 one section per command; a group's section applies to its sub-commands
    api-port = 8081

Precedence: option, environment, the command's section, `[common]`, default. Nobody is guessed for: an unknown
section, key or variable is an error that names the nearest one.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from trellis.errors import ConfigError, Fault
from trellis.nearest import nearest

PREFIX = "TRELLIS_"
FILE_NAME = "trellis.toml"
COMMON = "common"

DEVICE_SERVER = "TRELLIS_DEVICE_SERVER"
"""`--server` of a device: HOST:PORT of Flower servers, where `TRELLIS_SERVER` may be the operators' URL."""

INTERNAL_VARIABLES = frozenset(
    {"TRELLIS_CONFIG", DEVICE_SERVER, "TRELLIS_BACKCHANNEL", "TRELLIS_BACKCHANNEL_TOKEN"}
)
"""Variables that are not named after an option: the file's own path, a device's servers, and what a service
hands to its Flower app."""

SHARED_OPTIONS = frozenset({"base", "broker", "insecure", "json", "keys", "log-level"})
"""Options of many commands: known without importing those commands to ask them."""

Scalar = bool | int | float | str
Value = Scalar | list[Scalar]
KnownElsewhere = Callable[[], Collection[str]]
"""Returns the options of all commands; slow, so it is asked only about a name that the present one lacks."""

_WORDS = {bool: "true or false", int: "an integer", float: "a number", str: "a text in quotes"}


def _accept(_: Value) -> str:
    return ""


@dataclass(frozen=True)
class OptionSpec:
    """One option of a command.

    Attributes:
        name: As typed, without the leading dashes.
        parameter: What the command calls its value.
        kind: The type that the file must use.
        multiple: Whether it takes a list.
        check: Returns what is wrong with a value of the right type, or `""`.
    """

    name: str
    parameter: str
    kind: type[bool] | type[int] | type[float] | type[str]
    multiple: bool = False
    check: Callable[[Value], str] = field(default=_accept, compare=False)

    def problem(self, value: object) -> str:
        """Return what is wrong with a value from the file, or `""`."""
        items: list[Scalar] = []
        for item in value if isinstance(value, list) and self.multiple else [value]:
            if isinstance(item, bool | int | float | str) and self._fits(item):
                items.append(item)
                continue
            from trellis.faults import shown  # noqa: PLC0415 - pydantic, which --help and --version do without

            due = f"a list, each {_WORDS[self.kind]}" if self.multiple else _WORDS[self.kind]
            return f"must be {due}, got {shown(value)}"
        wrong = self.check(items)
        return f"{wrong[:1].lower()}{wrong[1:]}"

    def _fits(self, item: Scalar) -> bool:
        if self.kind is float:
            return type(item) in (int, float)
        # bool is a subclass of int: `port = true` is no port.
        return type(item) is self.kind


@dataclass(frozen=True)
class ConfigFile:
    """What `trellis.toml` says: sections of keys."""

    path: Path
    sections: Mapping[str, Mapping[str, object]]

    def check_sections(self, commands: Iterable[str]) -> None:
        """Return if every section is a command's or `[common]`.

        Raises:
            ConfigError: One is not; each is named with the nearest.
        """
        known = [*commands, COMMON]
        faults = [
            Fault(name, "is no section of it", _nearest(name, known, "[{}]"))
            for name in self.sections
            if name not in known
        ]
        if faults:
            raise ConfigError(f"settings file {str(self.path)!r}", faults)

    def defaults(
        self, section: str, specs: Collection[OptionSpec], known_elsewhere: KnownElsewhere
    ) -> dict[str, Value]:
        """Return the values that the file holds for a command's options, by the options' names.

        Raises:
            ConfigError: A key is no option, or a value does not fit it; every fault is named.
        """
        by_name = {spec.name: spec for spec in specs}
        chosen: dict[str, Value] = {}
        faults: list[Fault] = []
        for part in (COMMON, section):
            for key, value in self.sections.get(part, {}).items():
                spec = by_name.get(key.replace("_", "-"))
                if spec is None:
                    faults += self._unknown(part, key, by_name, known_elsewhere)
                elif wrong := spec.problem(value):
                    faults.append(Fault(f"{part}.{key}", wrong))
                else:
                    chosen[spec.name] = [value] if spec.multiple and not isinstance(value, list) else value  # type: ignore[assignment, list-item]
        if faults:
            raise ConfigError(f"settings file {str(self.path)!r}", faults)
        return chosen

    def _unknown(
        self, part: str, key: str, mine: Collection[str], known_elsewhere: KnownElsewhere
    ) -> list[Fault]:
        name = key.replace("_", "-")
        if part != COMMON:
            return [Fault(f"{part}.{key}", f"is no option of 'trellis {part}'", _nearest(name, mine))]
        if name in SHARED_OPTIONS:
            return []
        known = known_elsewhere()
        return (
            [] if name in known else [Fault(f"{part}.{key}", "is no command's option", _nearest(name, known))]
        )


def load(path: Path | None) -> ConfigFile | None:
    """Return the settings in `path`, or in `trellis.toml` of the working folder if there is one.

    Raises:
        ConfigError: It cannot be read, is no TOML, or has something beside sections of keys.
    """
    chosen = path or Path(FILE_NAME)
    if path is None and not chosen.exists():
        return None
    what = f"settings file {str(chosen)!r}"
    try:
        content = tomllib.loads(chosen.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(what, f"cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(what, f"is not UTF-8: {error.reason} at byte {error.start}") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(what, f"is not TOML: {error}") from None
    loose = [
        Fault(key, "stands in no section", f"put it below [{COMMON}] or a command's section")
        for key, value in content.items()
        if not isinstance(value, dict)
    ]
    if loose:
        raise ConfigError(what, loose)
    return ConfigFile(chosen, content)


def variable(option: str) -> str:
    """Return the name of the environment variable that an option also comes from."""
    return PREFIX + option.replace("-", "_").upper()


def check_environment(
    environment: Mapping[str, str], mine: Collection[str], known_elsewhere: KnownElsewhere
) -> None:
    """Return if every variable with our prefix is an option's, or internal.

    Raises:
        ConfigError: One is not: a misspelt setting would otherwise be ignored in silence.
    """
    quick = INTERNAL_VARIABLES | {variable(name) for name in SHARED_OPTIONS.union(mine)}
    strange = [name for name in sorted(environment) if name.startswith(PREFIX) and name not in quick]
    if not strange:
        return
    known = quick | {variable(name) for name in known_elsewhere()}
    faults = [Fault(name, "is no setting", _nearest(name, known)) for name in strange if name not in known]
    if faults:
        raise ConfigError("environment", faults)


def _nearest(name: str, known: Iterable[str], form: str = "{}") -> str:
    found = nearest(name, known)
    return "remove it" if found is None else f"did you mean {form.format(found)}?"
