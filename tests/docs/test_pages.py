"""Pages: links lead somewhere, commands can be typed, and nothing is left out of the tables."""

from __future__ import annotations

import re
import shlex
import tomllib
import xml.etree.ElementTree as ET
from pathlib import Path

import click
import pytest
from command_lines import command_lines, parse
from pages import ROOT, anchors, block, codes, links, pages, read, rows, section

from trellis import config
from trellis.cli.option_specs import option_specs
from trellis.cli.root import every_command
from trellis.topics import Kind

PAGES = [str(page.relative_to(ROOT)) for page in pages()]


def leaves(command: click.Command, name: str) -> list[str]:
    if not isinstance(command, click.Group):
        return [name]
    return [leaf for word, inner in command.commands.items() for leaf in leaves(inner, f"{name} {word}")]


def test_every_page_is_looked_at() -> None:
    assert {"README.md", "CHANGELOG.md", "docs/task.md", "deploy/raspberry-pi.md"} <= set(PAGES)


@pytest.mark.parametrize("page", PAGES)
def test_every_relative_link_leads_somewhere(page: str) -> None:
    for target in links(read(page)):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.exists(), f"{page} links to {target}"
        if anchor:
            assert anchor in anchors(file.read_text(encoding="utf-8")), f"{page} links to {target}"


@pytest.mark.parametrize("page", PAGES)
def test_every_command_on_a_page_parses(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # What a user would have set must not fill in for what the page leaves out.
    for name in ("TRELLIS_REGION", "TRELLIS_NAME", "TRELLIS_DATA"):
        monkeypatch.delenv(name, raising=False)
    for line in command_lines(read(page)):
        words = shlex.split(line.split(" > ")[0].split(" | ")[0], comments=True)
        if not is_a_name(words):
            parse(words)


def is_a_name(words: list[str]) -> bool:
    """Whether this is how a command is called, and no command line: `trellis task cancel`."""
    command: click.Command | None = every_command()[words[1]]
    for word in words[2:]:
        command = (
            command.get_command(click.Context(command), word) if isinstance(command, click.Group) else None
        )
    return command is not None


def test_the_quickstarts_own_commands_parse_with_its_settings() -> None:
    settings = {"gateway": ["--region", "eu-1"], "device": ["--region", "eu-1", "--data", "digits"]}
    found = re.findall(r"trellis [^&;)\n]+", block(read("README.md"), "quickstart"))
    assert len(found) == 6
    for line in found:
        words = shlex.split(line)
        parse([*words, *settings.get(words[1], [])])


def test_the_table_of_commands_is_whole() -> None:
    listed = [codes(row[0])[0] for row in rows(section(read("README.md"), "Commands"))]
    there = [leaf for name, command in every_command().items() for leaf in leaves(command, f"trellis {name}")]
    assert sorted(listed) == sorted(there)


def test_the_readmes_table_of_topics_is_whole() -> None:
    listed = [codes(row[0])[0] for row in rows(section(read("README.md"), "Watch it"))]
    assert [topic.replace("<", "{").replace(">", "}") for topic in listed] == [kind.value for kind in Kind]


def test_the_settings_on_the_page_of_operations_are_options(tmp_path: Path) -> None:
    file = tmp_path / "trellis.toml"
    file.write_text(block(read("docs/operations.md"), "settings"), encoding="utf-8")
    settings = config.load(file)
    assert settings is not None
    commands = every_command()
    settings.check_sections(commands)
    for name in settings.sections:
        if name != config.COMMON:
            settings.defaults(name, option_specs(commands[name]), lambda: ())


def test_the_picture_is_well_formed_and_takes_nothing_from_elsewhere() -> None:
    text = read("docs/overview.svg")
    root = ET.fromstring(text)  # noqa: S314 - our own file
    assert root.find("{http://www.w3.org/2000/svg}title") is not None
    assert set(re.findall(r"https?://[^\"' ]+", text)) == {"http://www.w3.org/2000/svg"}


def test_the_readme_and_the_changelog_know_this_version() -> None:
    version = tomllib.loads(read("pyproject.toml"))["project"]["version"]
    assert version in read("CHANGELOG.md")


def test_the_readmes_extras_are_there() -> None:
    extras = tomllib.loads(read("pyproject.toml"))["project"]["optional-dependencies"]
    named = [name for page in PAGES for found in re.findall(r"trellis-fl\[([a-z,]+)\]", read(page))
             for name in found.split(",")]  # fmt: skip
    assert named
    assert set(named) <= set(extras)


def test_the_readmes_make_targets_are_there() -> None:
    named = set(re.findall(r"\bmake ([a-z]+)", section(read("README.md"), "See it work")))
    targets = set(re.findall(r"^([a-z-]+):", read("Makefile"), re.MULTILINE))
    assert {"demo", "test"} <= named
    assert named <= targets
