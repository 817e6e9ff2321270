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
    if name == "gateway":
        assert parameters["server"] == "https://server:8080"
    if name == "device":
        gateway = parse(SERVICES["gateway"]["command"]).params
        assert gateway["front_address"] == f"gateway:{gateway['front_port']}"
        # The first for tasks that the gateway relays, the second for those that it averages.
        assert list(parameters["server"]) == ["server:8000", gateway["front_address"]]


def test_compose_publishes_what_its_services_listen_on() -> None:
    assert {name: service.get("ports", []) for name, service in SERVICES.items()} == {
        "mosquitto": ["8883:8883"],
        "server": ["8000:8000", "8080:8080"],
        "gateway": ["8001:8001", "8081:8081"],
        "device": [],
    }


def test_compose_runs_everything_without_rights() -> None:
    for service in SERVICES.values():
        assert service["cap_drop"] == ["ALL"]
        assert service["read_only"] is True
        assert service["security_opt"] == ["no-new-privileges:true"]


def test_the_image_copies_folders_that_there_are() -> None:
    assert {"trellis", "models", "central_server", "regional_gateway", "device_agent"} <= copied()
    assert [source for source in sorted(copied()) if not (ROOT / source).exists()] == []


def copied() -> set[str]:
    text = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    return {word for line in re.findall(r"^COPY (.*)$", text, re.MULTILINE) for word in line.split()[:-1]}


def test_only_what_the_image_copies_goes_to_the_container_daemon() -> None:
    context = (DEPLOY / COMPOSE["x-common"]["build"]["context"]).resolve()
    lines = (context / ".dockerignore").read_text(encoding="utf-8").splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    # The last rule that fits a path decides: all is kept away first, keys and runs with it.
    assert rules[0] == "*"
    assert {rule.removeprefix("!") for rule in rules if rule.startswith("!")} == copied()
    assert {rule for rule in rules[1:] if not rule.startswith("!")} == {"**/__pycache__", "**/*.pyc"}


def test_the_image_installs_the_versions_that_are_tested() -> None:
    text = (DEPLOY / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    installs = re.findall(r"pip install [^;\n]*", text)
    assert len(installs) == 2
    assert all("-c constraints.txt" in line for line in installs)
    assert "constraints.txt" in copied()
    assert text.index("COPY constraints.txt") < text.index("pip install")


@pytest.mark.parametrize(
    "page", ["raspberry-pi.md", "compose.yaml", "mosquitto/mosquitto.conf", "reverse-proxy/trellis.conf"]
)
def test_every_command_on_a_page_is_one_that_we_have(page: str) -> None:
    text = (DEPLOY / page).read_text(encoding="utf-8")
    found = list(command_lines(text))
    assert found
    for line in found:
        parse(shlex.split(line, comments=True))


@pytest.mark.parametrize("page", ["README.md", "deploy/raspberry-pi.md", "deploy/mosquitto/mosquitto.conf"])
def test_a_page_is_spelled_the_american_way(page: str) -> None:
    british = (
        r"\b(?:\w*colour|\w*behaviour|centre|favour|neighbour|cancell(?:ed|ing)|labell|artefact|licence)\w*"
    )
    assert re.findall(british, (ROOT / page).read_text(encoding="utf-8"), re.IGNORECASE) == []


def test_every_link_within_the_pi_page_leads_somewhere() -> None:
    text = (DEPLOY / "raspberry-pi.md").read_text(encoding="utf-8")
    headings = {
        re.sub(r"[^\w -]", "", line).strip().lower().replace(" ", "-")
        for line in re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    }
    links = re.findall(r"\]\(#([\w-]+)\)", text)
    assert links
    assert set(links) <= headings


def test_every_file_on_the_pi_page_is_there() -> None:
    text = (DEPLOY / "raspberry-pi.md").read_text(encoding="utf-8")
    found = set(re.findall(r"\bdeploy/[\w./@-]+", text))
    assert found
    assert [path for path in sorted(found) if not (ROOT / path).is_file()] == []
