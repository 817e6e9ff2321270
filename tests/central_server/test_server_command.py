"""`trellis server`: what it takes for a task, keys, broker and data, and what it says when it cannot."""

from __future__ import annotations

import json
import math
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from central_server.command import broker_url, signed_task, trust
from central_server.settings import Timing, data_sources
from tests.central_server.parts import descriptor
from trellis.descriptor import parse_json
from trellis.envelope import Envelope, Keyring
from trellis.errors import ConfigError, InvalidInput
from trellis.keys.authority import create_authority, issue
from trellis.keys.identity import load_keyring
from trellis.keys.principals import SERVER, gateway


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pki") / "keys"
    create_authority(folder, days=3)
    for principal in (SERVER, gateway("eu-1")):
        issue(folder, principal, [], 3)
    return folder


def test_a_descriptor_is_signed_where_the_operators_key_is(tmp_path: Path, keys: Path) -> None:
    file = tmp_path / "task.json"
    file.write_text(descriptor().to_json())
    envelope = Envelope.parse(signed_task(file, keys))
    load_keyring(keys).verify(envelope)
    assert parse_json(envelope.payload).same_work(descriptor())


def test_a_signed_task_goes_as_it_is(tmp_path: Path, keys: Path) -> None:
    file = tmp_path / "task.json"
    file.write_text(descriptor().to_json())
    signed = tmp_path / "signed.json"
    signed.write_bytes(signed_task(file, keys))
    assert signed_task(signed, keys / "server") == signed.read_bytes()


def test_a_descriptor_without_a_signing_key_is_an_error_that_says_so(tmp_path: Path, keys: Path) -> None:
    file = tmp_path / "task.json"
    file.write_text(descriptor().to_json())
    with pytest.raises(ConfigError, match=r"is not signed.*trellis task sign"):
        signed_task(file, keys / "server")


def test_a_file_that_is_no_task_names_its_faults(tmp_path: Path, keys: Path) -> None:
    file = tmp_path / "task.yaml"
    file.write_text("task: UPPER\n")
    with pytest.raises(InvalidInput, match="regions"):
        signed_task(file, keys)
    with pytest.raises(ConfigError, match="cannot be read"):
        signed_task(tmp_path / "nope.yaml", keys)


def test_trust_is_the_servers_own_certificate_or_with_insecure_the_keyring_alone(keys: Path) -> None:
    keyring, tls = trust(keys, insecure=False)
    assert tls is not None
    assert tls.cert == keys / "server" / "tls.crt"
    assert keyring.keyids == load_keyring(keys).keyids
    assert trust(keys, insecure=True)[1] is None
    assert isinstance(trust(keys / "operator", insecure=True)[0], Keyring)
    with pytest.raises(ConfigError, match="this server is 'central/server'"):
        trust(keys / "gateways" / "eu-1", insecure=False)


def test_without_insecure_the_broker_is_encrypted() -> None:
    assert broker_url(None, insecure=True) == "mqtt://127.0.0.1:1883"
    assert broker_url(None, insecure=False) == "mqtts://127.0.0.1:8883"
    with pytest.raises(ConfigError, match="mqtts://"):
        broker_url("mqtt://127.0.0.1:1883", insecure=False)


def test_data_sources_have_the_names_that_loading_gives_them(tmp_path: Path) -> None:
    for name in ("mnist.npz", "images.idx.gz", "plain"):
        (tmp_path / name).touch()
    found = data_sources(["digits", *(str(tmp_path / n) for n in ("mnist.npz", "images.idx.gz"))])
    assert found == {
        "digits": "digits",
        "mnist": f"mnist={tmp_path / 'mnist.npz'}",
        "images": f"images={tmp_path / 'images.idx.gz'}",
    }
    assert data_sources([f"own={tmp_path / 'plain'}"]) == {"own": f"own={tmp_path / 'plain'}"}
    (tmp_path / "wine.csv").touch()
    wine = f"{tmp_path / 'wine.csv'}#quality"
    assert data_sources([wine]) == {"wine": f"wine={wine}"}
    with pytest.raises(ConfigError, match="2 faults"):
        data_sources(["/nowhere/x.npz", "digits", "digits"])


def run_server(*options: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "trellis", "server", *options],
        cwd=cwd,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )


def test_where_no_broker_listens_it_exits_2_and_names_the_command(tmp_path: Path, keys: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        broker = f"mqtt://127.0.0.1:{closed.getsockname()[1]}"
        options = ["--insecure", "--keys", str(keys), "--front-port", "0", "--api-port", "0"]
        done = run_server(*options, "--broker", broker, cwd=tmp_path)
    assert done.returncode == 2
    assert "trellis broker" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("option", ["--front-port", "--api-port"])
def test_a_taken_port_exits_2_and_names_it_and_its_owner(tmp_path: Path, keys: Path, option: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ports = {"--front-port": "0", "--api-port": "0", option: str(port)}
        named = [word for pair in ports.items() for word in pair]
        # Ports come before the broker: one that is away would be named otherwise.
        done = run_server("--insecure", "--keys", str(keys), *named, cwd=tmp_path)
    assert done.returncode == 2
    assert f"port {port} on 127.0.0.1: is taken by " in done.stderr
    assert f"(pid {os.getpid()}): end it or choose another" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_topics_of_ended_tasks_are_kept_for_as_long_as_asked() -> None:
    assert Timing.keeping(24.0) == Timing()
    assert Timing.keeping(0.5).retention_s == 1800.0
    assert Timing.keeping(0).retention_s == 0.0
    for hours in (-1.0, math.nan, math.inf):
        with pytest.raises(ConfigError, match="keep-hours"):
            Timing.keeping(hours)


def test_keep_hours_out_of_range_exit_2(tmp_path: Path) -> None:
    done = run_server("--insecure", "--keep-hours", "-1", cwd=tmp_path)
    assert done.returncode == 2
    assert "keep-hours: -1 must be 0 to 87600" in done.stderr


def test_help_has_an_example(tmp_path: Path) -> None:
    done = run_server("--help", cwd=tmp_path)
    assert done.returncode == 0
    assert "trellis server --insecure --task task.yaml --data digits" in done.stdout


def test_a_signed_task_is_readable_json(tmp_path: Path, keys: Path) -> None:
    file = tmp_path / "task.json"
    file.write_text(descriptor().to_json())
    assert json.loads(json.loads(signed_task(file, keys))["payload"])["task"] == "digits-mlp"
