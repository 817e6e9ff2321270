"""Every command explains itself, and listing them imports none."""

from __future__ import annotations

import subprocess
import sys

import click
import pytest

from trellis.cli import main
from trellis.cli.option_specs import option_specs
from trellis.cli.root import every_command, load_command
from trellis.cli.table import ENTRIES
from trellis.config import SHARED_OPTIONS

HEAVY = (
    "central_server",
    "device_agent",
    "fastapi",
    "flwr",
    "httpx",
    "models",
    "pydantic",
    "regional_gateway",
    "rich.console",
    "sklearn",
    "torch",
)


def command_paths() -> list[tuple[str, ...]]:
    paths: list[tuple[str, ...]] = []
    for entry in ENTRIES:
        command = load_command(entry)
        if isinstance(command, click.Group):
            paths += [(entry.name, name) for name in command.commands]
        else:
            paths.append((entry.name,))
    return paths


@pytest.mark.parametrize("path", command_paths(), ids=" ".join)
def test_help_shows_an_example(path: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*path, "--help"]) == 0
    shown = capsys.readouterr().out
    assert f"Usage: trellis {' '.join(path)}" in shown
    assert "Example" in shown
    assert f"  trellis {' '.join(path)}" in shown
    assert "\\[" not in shown


def command_at(path: tuple[str, ...]) -> click.Command:
    command = every_command()[path[0]]
    for name in path[1:]:
        assert isinstance(command, click.Group)
        command = command.commands[name]
    return command


@pytest.mark.parametrize(
    ("path", "argument", "due"),
    [
        (("task", "show"), "TASK", "The task's name."),
        (("task", "validate"), "FILE", "Task descriptor, YAML or JSON."),
        (("init",), "[DIR]", "Where to write; made if need be."),
        (("model", "get"), "TASK", "The task that trained it."),
    ],
    ids=str,
)
def test_help_says_what_an_argument_is(
    path: tuple[str, ...], argument: str, due: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*path, "--help"]) == 0
    shown = capsys.readouterr().out
    assert f"\n  {argument}  {due}  [" in shown
    assert shown.count(due) == 1


@pytest.mark.parametrize("path", command_paths(), ids=" ".join)
def test_help_has_a_sentence_for_every_argument(
    path: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [one for one in command_at(path).params if isinstance(one, click.Argument)]
    assert main([*path, "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for argument in arguments:
        # click's own `help` came with 8.5, and typer has one in all versions.
        explained = getattr(argument, "help", None)
        assert explained, argument.name
        assert " ".join(explained.split()) in shown


@pytest.mark.parametrize("name", [entry.name for entry in ENTRIES])
def test_every_group_and_the_root_have_a_line_for_it(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert f"\n  {name} " in capsys.readouterr().out


def test_every_command_can_be_imported_here() -> None:
    assert set(every_command()) == {entry.name for entry in ENTRIES}


def test_options_known_without_asking_are_options_of_several_commands() -> None:
    holders = {
        name: [
            command for command, one in every_command().items() if name in {o.name for o in option_specs(one)}
        ]
        for name in SHARED_OPTIONS
    }
    assert {name: len(found) for name, found in holders.items() if len(found) < 2} == {}


@pytest.mark.parametrize("arguments", [["--version"], ["--help"]])
def test_listing_commands_imports_none_of_them(arguments: list[str]) -> None:
    program = (
        "import sys\nfrom trellis.cli import main\n"
        f"code = main({arguments!r})\n"
        f"loaded = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "sys.exit(f'loaded {loaded}' if loaded else code)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert (ended.returncode, ended.stderr) == (0, "")
