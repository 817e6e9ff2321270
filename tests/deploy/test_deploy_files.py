"""What the deployment's files say can be typed: every command is one that we have, every file is there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_lines import command_lines, parse

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]

# The Compose specification's names, as far as this file needs any.
KNOWN_SERVICE_KEYS = {
    "build", "cap_drop", "command", "depends_on", "image", "init", "ports", "read_only", "restart",
    "security_opt", "stop_grace_period", "tmpfs", "user", "volumes",
}  # fmt: skip


def test_compose_uses_only_names_that_compose_knows() -> None:
    assert {key for key in COMPOSE if not key.startswith("x-")} == {"name", "services", "volumes"}
    for service in SERVICES.values():
        assert set(service) <= KNOWN_SERVICE_KEYS


def test_compose_mounts_only_volumes_and_files_that_there_are() -> None:
    keys = {"server", "broker", "gateways/eu-1", "devices/eu-1/cam-1"}
    named = set()
    for service in SERVICES.values():
        for source, _, _ in (volume.partition(":") for volume in service["volumes"]):
            if source.startswith("./keys/"):
                keys.remove(source.removeprefix("./keys/"))
            elif source.startswith("."):
                assert (DEPLOY / source).is_file()
            else:
                named.add(source)
        assert set(service.get("depends_on", ())) <= set(SERVICES)
    assert keys == set()
    assert named == set(COMPOSE["volumes"])


@pytest.mark.parametrize("name", ["server", "gateway", "device"])
def test_compose_commands_are_ours_and_reach_each_other(name: str) -> None:
    parameters = parse(SERVICES[name]["command"]).params
    assert parameters["broker"] == "mqtts://mosquitto:8883"
    if name != "server":
        due = {"gateway": "https://server:8080", "device": "server:8000"}[name]
        assert parameters["server"] in (due, [due], (due,))


def test_compose_publishes_what_its_services_listen_on() -> None:
    assert {name: service.get("ports", []) for name, service in SERVICES.items()} == {
        "mosquitto": ["8883:8883"],
        "server": ["8000:8000", "8080:8080"],
        "gateway": ["8081:8081"],
        "device": [],
    }


def test_compose_runs_everything_without_rights() -> None:
    for service in SERVICES.values():
        assert service["cap_drop"] == ["ALL"]
        assert service["read_only"] is True
        assert service["security_opt"] == ["no-new-privileges:true"]


def test_the_image_copies_folders_that_there_are() -> None:
    text = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    sources = [word for line in re.findall(r"^COPY (.*)$", text, re.MULTILINE) for word in line.split()[:-1]]
    assert {"trellis", "models", "central_server", "regional_gateway", "device_agent"} <= set(sources)
    assert [source for source in sources if not (ROOT / source).exists()] == []


@pytest.mark.parametrize(
    "page", ["raspberry-pi.md", "compose.yaml", "mosquitto/mosquitto.conf", "reverse-proxy/trellis.conf"]
)
def test_every_command_on_a_page_is_one_that_we_have(page: str) -> None:
    text = (DEPLOY / page).read_text(encoding="utf-8")
    found = list(command_lines(text))
    assert found
    for line in found:
        parse(shlex.split(line, comments=True))


def test_every_file_on_the_pi_page_is_there() -> None:
    text = (DEPLOY / "raspberry-pi.md").read_text(encoding="utf-8")
    found = set(re.findall(r"\bdeploy/[\w./@-]+", text))
    assert found
    assert [path for path in sorted(found) if not (ROOT / path).is_file()] == []
