"""The shipped systemd units: systemd accepts them, they are closed, their commands are ones that we have."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest

from trellis.cli.root import load_command
from trellis.cli.table import ENTRIES

SYSTEMD = Path(__file__).parents[2] / "deploy" / "systemd"
INSTANCES = {
    "trellis-server.service": "",
    "trellis-gateway@.service": "eu-1",
    "trellis-device@.service": "cam-7",
}
UNITS = sorted(INSTANCES)
LIMIT_S = 60.0

Need = Callable[[str], str]


def setting(unit: str, name: str) -> list[str]:
    text = (SYSTEMD / unit).read_text(encoding="utf-8")
    return re.findall(rf"^{name}=(.*)$", text, re.MULTILINE)


def instance(unit: str, text: str) -> str:
    return text.replace("%S", "/var/lib").replace("%i", INSTANCES[unit])


def settings_file(unit: str) -> dict[str, str]:
    (path,) = setting(unit, "EnvironmentFile")
    text = (SYSTEMD / "examples" / Path(instance(unit, path)).name).read_text(encoding="utf-8")
    assert f"# {instance(unit, path)}: " in text
    return dict(line.split("=", 1) for line in text.splitlines() if line and not line.startswith("#"))


def test_every_unit_is_tried_here() -> None:
    assert sorted(path.name for path in SYSTEMD.glob("*.service")) == UNITS


@pytest.mark.parametrize("unit", UNITS)
def test_systemd_accepts_it_without_a_word(unit: str, tmp_path: Path, need: Need) -> None:
    text = (SYSTEMD / unit).read_text(encoding="utf-8")
    # The program is not installed on this machine, so another stands in its place; nothing else is changed.
    assert "ExecStart=/opt/trellis/bin/trellis " in text
    text = text.replace("/opt/trellis/bin/trellis", sys.executable)
    path = tmp_path / unit.replace("@.", f"@{INSTANCES[unit]}.")
    path.write_text(text, encoding="utf-8")
    done = subprocess.run(
        [need("systemd-analyze"), "verify", "--man=no", str(path)],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    # It also reports on this machine's own units.
    ours = [line for line in (done.stdout + done.stderr).splitlines() if "trellis" in line]
    assert ours == []
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("unit", UNITS)
def test_systemd_calls_it_well_closed(unit: str, need: Need) -> None:
    # 10 is open and 0 is closed; systemd says OK below 2.5. The network and root's own sockets cost the rest.
    done = subprocess.run(
        [need("systemd-analyze"), "security", "--offline=yes", "--threshold=20", str(SYSTEMD / unit)],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
        env={**os.environ, "SYSTEMD_PAGER": ""},
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr


@pytest.mark.parametrize("unit", UNITS)
def test_its_command_and_settings_are_ours(unit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (line,) = setting(unit, "ExecStart")
    program, command, *arguments = shlex.split(instance(unit, line))
    assert program == "/opt/trellis/bin/trellis"
    for name, value in settings_file(unit).items():
        monkeypatch.setenv(name, value)
    (entry,) = [entry for entry in ENTRIES if entry.name == command]
    parsed: click.Context = load_command(entry).make_context(command, arguments)
    variables = {parameter.envvar for parameter in parsed.command.params}
    given = [pair.partition("=")[0] for pair in setting(unit, "Environment")]
    assert {name for name in (*settings_file(unit), *given) if name.startswith("TRELLIS_")} <= variables
    assert parsed.params["broker"] == "mqtts://10.0.0.5:8883"


@pytest.mark.parametrize("unit", UNITS)
def test_it_tries_again_unless_the_input_must_be_mended(unit: str) -> None:
    assert setting(unit, "Restart") == ["on-failure"]
    assert setting(unit, "RestartPreventExitStatus") == ["2"]
    assert setting(unit, "StartLimitIntervalSec") == ["0"]
    assert setting(unit, "KillMode") == ["mixed"]


@pytest.mark.parametrize("unit", UNITS)
def test_its_state_is_its_own(unit: str) -> None:
    (state,) = setting(unit, "StateDirectory")
    assert setting(unit, "StateDirectoryMode") == ["0700"]
    assert setting(unit, "WorkingDirectory") == [f"%S/{state}"]
    (line,) = setting(unit, "ExecStart")
    assert f"%S/{state}" in line
    # Flower writes into the home folder, and ProtectHome leaves no other.
    assert any(f"HOME=%S/{state} " in f"{value} " for value in setting(unit, "Environment"))


def test_only_what_never_loads_torch_forbids_new_machine_code() -> None:
    assert {unit: setting(unit, "MemoryDenyWriteExecute") for unit in UNITS} == {
        "trellis-device@.service": ["no"],
        "trellis-gateway@.service": ["yes"],
        "trellis-server.service": ["no"],
    }
