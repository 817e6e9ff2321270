"""docs/regions.md: its tasks are tasks, and its commands fit together."""

from __future__ import annotations

import re
import shlex
from typing import Any

import pytest
from command_lines import parse
from pages import block, read

from trellis import descriptor, plain_yaml
from trellis.keys.acl import below_of


def read_yaml(text: str) -> dict[str, Any]:
    value = plain_yaml.load(text.encode(), what="docs/regions.md")
    assert isinstance(value, dict)
    return value


PAGE = read("docs/regions.md")
TASK = read_yaml(block(PAGE, "file: regions.yaml"))
TRIAL, NESTED = (block(PAGE, marker).splitlines() for marker in ("trial", "nested-gateways"))


def commands(lines: list[str], name: str) -> list[list[str]]:
    """Return the words of the lines that run such a command, also within a loop."""
    found = [re.search(rf"trellis {name}\b[^&;]*", line) for line in lines]
    return [shlex.split(one[0]) for one in found if one is not None]


def option(words: list[str], name: str, default: str = "") -> str:
    return words[words.index(name) + 1] if name in words else default


@pytest.mark.parametrize("changes", [{}, read_yaml(block(PAGE, "nested"))], ids=["flat", "nested"])
def test_its_task_is_one_in_which_every_region_averages(changes: dict[str, object]) -> None:
    task = descriptor.parse_mapping(TASK | changes)
    assert {task.tier_of(region) for region in task.regions} == {"regional"}
    top = len(task.regions) if not changes else 1
    assert task.participants_at("central").minimum == top, "as many as stand directly below the server"


@pytest.mark.parametrize("lines", [TRIAL, NESTED], ids=["flat", "nested"])
def test_gateways_have_ports_of_their_own(lines: list[str]) -> None:
    ports = []
    for words in commands(lines, "gateway"):
        parse(words)
        ports += [option(words, "--front-port"), option(words, "--api-port", "8081")]
    assert len(ports) == len(set(ports)) > 2
    apis = {option(words, "--api-port", "8081") for words in commands(lines, "gateway")}
    parents = {option(words, "--parent") for words in commands(lines, "gateway")} - {""}
    assert {url.rpartition(":")[2] for url in parents} <= apis


def test_devices_of_the_trial_reach_their_own_regions_front_and_are_enough() -> None:
    fronts = {
        option(words, "--region"): option(words, "--front-port") for words in commands(TRIAL, "gateway")
    }
    assert set(fronts) == set(TASK["regions"])
    for words in commands(TRIAL, "device"):
        region = option(words, "--region", "eu-1")  # as trellis.toml of `trellis init` says
        assert option(words, "--server") == f"127.0.0.1:{fronts.pop(region)}"
    assert fronts == {}
    loops = re.findall(r"for i in ([0-9 ]+);", "\n".join(TRIAL))
    assert [len(one.split()) for one in loops] == [TASK["participants"]["minimum"]] * 2


def test_who_stands_below_whom_is_what_the_gateways_are_told() -> None:
    (acl,) = re.findall(r"^trellis keys acl .*$", PAGE, re.MULTILINE)
    below = below_of(re.findall(r"--below (\S+)", acl))
    regions = {option(words, "--region"): option(words, "--parent") for words in commands(NESTED, "gateway")}
    assert below == {region: "eu" for region, parent in regions.items() if parent}
