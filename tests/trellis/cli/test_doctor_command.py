"""`trellis doctor` as a process: exit codes, output, and how long it takes when nobody answers."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import trellis
from trellis.cli import main
from trellis.keys import authority

ROOT = Path(trellis.__file__).parent.parent
PROMISED_S = 15.0


def run(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "trellis", "doctor", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def checks(ended: subprocess.CompletedProcess[str]) -> dict[str, dict[str, Any]]:
    answer = json.loads(ended.stdout)
    assert answer.keys() == {"checks"}
    return {check["name"]: check for check in answer["checks"]}


def test_a_bare_machine_passes_and_what_was_not_named_is_skipped(tmp_path: Path) -> None:
    ended = run(tmp_path)
    assert (ended.returncode, ended.stderr) == (0, "")
    words = {line.split()[1]: line.split()[0] for line in ended.stdout.splitlines() if line[:1].isalpha()}
    assert words["python"] == words["flwr"] == "ok"
    assert {words[name] for name in ("server", "gateway", "broker", "broker.clock")} == {"skipped"}
    assert {words[name] for name in ("keys.identity", "settings.file")} == {"skipped"}
    assert "-> give --server URL" in ended.stdout
    assert " skipped" in ended.stdout.splitlines()[-1]
    assert "\x1b" not in ended.stdout


def test_the_json_has_four_texts_for_each_check_and_a_remedy_for_each_failure(tmp_path: Path) -> None:
    authority.create_authority(tmp_path / "keys")
    (tmp_path / "keys" / "operator" / "tls.key").chmod(0o604)
    ended = run(tmp_path, "--json", "--server", "http://127.0.0.1:1", "--state", "elsewhere")
    assert ended.returncode == 1
    found = checks(ended)
    for check in found.values():
        assert check.keys() == {"name", "status", "found", "remedy"}
        assert all(isinstance(value, str) for value in check.values())
        assert check["status"] in {"ok", "warning", "failure", "skipped"}
        assert check["remedy"] or check["status"] in {"ok", "skipped"}
    assert {name for name, check in found.items() if check["status"] == "failure"} == {
        "server",
        "keys.identity",
    }
    assert found["server.clock"]["found"] == "the server did not answer"
    assert "elsewhere" in found["disk.state"]["found"]
    # Port 1 was named, and where that server has its front is not known.
    assert [name for name in found if name.startswith("port.")] == ["port.1", "port.8081", "port.1883"]


def test_settings_that_stop_every_other_command_are_told_by_the_doctor(tmp_path: Path) -> None:
    (tmp_path / "trellis.toml").write_text("[common]\nkeys = 'keys'\n[gatewya]\nregion = 'eu-1'\n")
    ended = run(tmp_path, "--json", TRELLIS_BROKR="mqtt://127.0.0.1:1")
    assert (ended.returncode, ended.stderr) == (1, "")
    found = checks(ended)
    assert found["settings.file"]["status"] == found["settings.environment"]["status"] == "failure"
    assert "did you mean [gateway]?" in found["settings.file"]["found"]
    assert "did you mean TRELLIS_BROKER?" in found["settings.environment"]["found"]


def test_what_is_set_is_looked_at(tmp_path: Path) -> None:
    (tmp_path / "other.toml").write_text("[common]\nbroker = 'mqtt://127.0.0.1:1'\n[doctor]\nruns = 'far'\n")
    ended = run(tmp_path, "--json", TRELLIS_CONFIG=str(tmp_path / "other.toml"), TRELLIS_KEYS="nokeys")
    found = checks(ended)
    assert "mqtt://127.0.0.1:1" in found["broker"]["found"]
    assert "nokeys" in found["keys.identity"]["found"]
    assert found["keys.identity"]["status"] == "failure"
    assert "far" in found["disk.runs"]["found"]


def test_in_the_folder_that_init_makes_all_services_are_looked_at(tmp_path: Path) -> None:
    assert main(["init", str(tmp_path / "trial")]) == 0
    # Nobody is to be there, whatever else this machine runs.
    settings = tmp_path / "trial" / "trellis.toml"
    settings.write_text(settings.read_text().replace(":1883", ":1").replace(":808", ":2"))
    ended = run(tmp_path / "trial", "--json")
    found = checks(ended)
    assert {name: found[name]["status"] for name in ("server", "gateway", "broker", "keys.identity")} == {
        "server": "failure",
        "gateway": "failure",
        "broker": "failure",
        "keys.identity": "ok",
    }
    assert "trellis server" in found["server"]["remedy"]


@pytest.fixture
def silent() -> Iterator[list[int]]:
    """Ports that take a connection and never answer, and one that does not even take it."""
    with ExitStack() as stack:
        deaf = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(3)]
        full = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        # The kernel answers no more SYN once the queue is full, as a black hole.
        for _ in range(4):
            caller = stack.enter_context(socket.socket())
            caller.setblocking(False)
            caller.connect_ex(full.getsockname())
        yield [listener.getsockname()[1] for listener in (*deaf, full)]


@pytest.mark.parametrize("black_hole", [False, True])
@pytest.mark.parametrize("encrypted", [False, True])
def test_it_ends_in_time_when_nobody_answers(
    tmp_path: Path, silent: list[int], encrypted: bool, black_hole: bool
) -> None:
    authority.create_authority(tmp_path / "keys")
    broker, server, gateway, full = silent
    if black_hole:
        broker = server = gateway = full
    web, mqtt = ("https", "mqtts") if encrypted else ("http", "mqtt")
    began = time.monotonic()
    ended = run(
        tmp_path,
        "--json",
        *("--server", f"{web}://127.0.0.1:{server}", "--gateway", f"{web}://127.0.0.1:{gateway}"),
        *("--broker", f"{mqtt}://127.0.0.1:{broker}"),
    )
    took_s = time.monotonic() - began
    found = checks(ended)
    assert (ended.returncode, ended.stderr) == (1, "")
    assert {found[name]["status"] for name in ("server", "gateway", "broker")} == {"failure"}
    assert {found[name]["status"] for name in ("server.clock", "gateway.broker")} == {"skipped"}
    assert found["python"]["status"] == "ok"
    assert took_s < PROMISED_S
