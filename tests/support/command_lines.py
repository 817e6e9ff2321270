"""`trellis` command lines on pages and in files: found, and parsed as the real command line would."""

from __future__ import annotations

import re
from collections.abc import Iterator

import click

from trellis.cli.root import load_command
from trellis.cli.table import ENTRIES


def parse(words: list[str]) -> click.Context:
    """Parse a command line as `trellis` would, without running it."""
    assert words[0] == "trellis"
    found = [entry for entry in ENTRIES if entry.name == words[1]]
    assert found, f"there is no trellis {words[1]}"
    command, name, rest = load_command(found[0]), words[1], words[2:]
    while isinstance(command, click.Group):
        name, *rest = rest
        inner = command.get_command(click.Context(command), name)
        assert inner is not None, f"there is no {' '.join(words)}"
        command = inner
    return command.make_context(name, rest)


def command_lines(text: str) -> Iterator[str]:
    """The `trellis` command lines of a page or of a file's comments."""
    lines = re.sub(r"^# ?", "", text, flags=re.MULTILINE).replace("\\\n", " ").splitlines()
    for line in lines:
        quoted = re.findall(r"`(trellis [a-z]+ [^`]*)`", line)
        # `trellis keys` alone is a name and no command line.
        yield from quoted or re.findall(r"^\s*(trellis (?!--).*)$", line)
