"""The shipped systemd units: systemd accepts them, they are closed, their commands are ones that we have."""

from __future__ import annotations

import os
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest

from trellis.cli.root import load_command
from trellis.cli.table import ENTRIES
from trellis.errors import Displaced
from trellis.keys.authority import create_authority, issue
from trellis.keys.principals import SERVER, device, gateway

ROOT = Path(__file__).parents[2]
SYSTEMD = ROOT / "deploy" / "systemd"
INSTANCES = {
    "trellis-server.service": "",
    "trellis-gateway@.service": "eu-1",
    "trellis-device@.service": "cam-7",
}
UNITS = sorted(INSTANCES)
LIMIT_S = 110.0

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
    named = [parameter.envvar for parameter in parsed.command.params]
    variables = {name for names in named for name in ([names] if isinstance(names, str) else names or [])}
    given = [pair.partition("=")[0] for pair in setting(unit, "Environment")]
    assert {name for name in (*settings_file(unit), *given) if name.startswith("TRELLIS_")} <= variables
    assert parsed.params["broker"] == "mqtts://10.0.0.5:8883"


def tries_again(unit: str, code: int) -> bool:
    """Whether systemd starts the unit again after its command has ended with `code`."""
    prevented, good = (
        " ".join(setting(unit, name)).split() for name in ("RestartPreventExitStatus", "SuccessExitStatus")
    )
    assert setting(unit, "Restart") == ["on-failure"]
    return str(code) not in {"0", *good, *prevented}


@pytest.mark.parametrize("unit", UNITS)
def test_it_tries_again_for_as_long_as_the_machine_is_on(unit: str) -> None:
    # After ever so many starts in a row: without this systemd gives up after five.
    assert setting(unit, "StartLimitIntervalSec") == ["0"]
    (delay,) = setting(unit, "RestartSec")
    assert 5 <= int(delay) <= 60
    assert [tries_again(unit, code) for code in (0, 1, 2)] == [False, True, True]
    # Two devices with one name, as of a copied card, would end each other for ever. Of gateways and servers
    # the clock says who is the elder: one may be its own dead predecessor's, and must try again.
    assert tries_again(unit, Displaced.exit_code) == (unit != "trellis-device@.service")
    assert setting(unit, "KillMode") == ["mixed"]


@pytest.mark.parametrize("unit", UNITS)
def test_it_tries_again_when_the_broker_is_not_there_yet(unit: str, tmp_path: Path) -> None:
    # A power cut: this machine is up before the broker. What its command ends with, the unit must try again.
    keys = tmp_path / "keys"
    create_authority(keys)
    for principal in (SERVER, gateway("eu-1"), device("eu-1", "cam-7")):
        issue(keys, principal)
    (line,) = setting(unit, "ExecStart")
    state = tmp_path / "state"
    _, *command = shlex.split(line.replace("%S", str(state)).replace("%i", INSTANCES[unit]))
    with socket.socket() as taken:  # bound, and not listening: whoever connects is refused
        taken.bind(("127.0.0.1", 0))
        broker = f"mqtts://127.0.0.1:{taken.getsockname()[1]}"
        own = {**settings_file(unit), "TRELLIS_BROKER": broker, "TRELLIS_KEYS": str(keys)}
        own |= {"HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
        if "TRELLIS_HOST" in own:
            own |= {"TRELLIS_HOST": "127.0.0.1", "TRELLIS_API_PORT": "0"}
        if unit == "trellis-server.service":
            own |= {"TRELLIS_FRONT_PORT": "0"}
        ended = subprocess.run(
            [sys.executable, "-m", "trellis", *command],
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
            cwd=tmp_path,
            env={**os.environ, **own},
        )
    assert broker in ended.stderr
    assert ended.returncode != 0
    assert tries_again(unit, ended.returncode), ended.stderr


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
