from __future__ import annotations

import asyncio
import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from device_agent.service import Options, main, own_data, settings_of
from device_agent.settings import DataSource, DeviceSettings
from trellis.envelope import Keyring
from trellis.errors import ConfigError, DataError
from trellis.keys.authority import create_authority, issue
from trellis.keys.principals import device
from trellis.signing_key import SigningKey

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "tensorflow", "onnxruntime", "jax", "sklearn")


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    return subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    keys = tmp_path_factory.mktemp("keys") / "keys"
    create_authority(keys, days=30)
    for region, name in (("eu-1", "cam-7"), ("us-1", "cam-7")):
        issue(keys, device(region, name), [], 30)
    return keys


@pytest.fixture
def options(keys: Path, tmp_path: Path) -> Options:
    data = tmp_path / "blobs.npz"
    x = np.zeros((40, 4), np.float32)
    np.savez(data, x_train=x, y_train=np.arange(40) % 3, x_test=x[:3], y_test=np.arange(3))
    return Options(
        name="cam-7",
        region="eu-1",
        data=str(data),
        keys=keys,
        broker="mqtts://10.0.0.5:8883",
        servers=("10.0.0.5:8000",),
        partition=None,
        split="iid",
        split_seed=42,
        backend="torch",
        threads=1,
        artefact_mb=256,
        keepalive=20,
        state=tmp_path / "state",
        base="trellis/v1",
        insecure=False,
        link="warm",
        trust_server_code=False,
    )


@pytest.mark.parametrize(
    "module", ["device_agent", "device_agent.command", "device_agent.service", "device_agent.participation"]
)
def test_importing_the_agent_loads_no_training_runtime(module):
    done = python("-c", f"import sys, {module}; print([m for m in {HEAVY!r} if m in sys.modules])")
    assert done.stdout.strip() == "[]", done.stderr


def test_help_has_an_example_and_every_option():
    done = python("-m", "trellis", "device", "--help")
    assert done.returncode == 0, done.stderr
    assert "trellis device --name cam-7 --region eu-1" in done.stdout
    for option in ("name", "region", "keys", "broker", "server", "data", "partition", "split", "split-seed"):
        assert f"--{option} " in done.stdout
    for option in ("backend", "threads", "state", "insecure", "link", "trust-server-code"):
        assert f"--{option}" in done.stdout


def test_a_device_has_its_own_identity(options):
    settings = settings_of(options)
    assert settings.tls is not None
    assert settings.principal == "eu-1/devices/cam-7"


def test_anothers_certificate_is_refused(options):
    theirs = dataclasses.replace(options, keys=options.keys / "devices" / "us-1" / "cam-7")
    due = "certificate is for 'us-1/devices/cam-7', this device is 'eu-1/devices/cam-7'"
    with pytest.raises(ConfigError, match=re.escape(due)) as error:
        settings_of(theirs)
    assert error.value.exit_code == 2


@pytest.mark.parametrize("seconds", [0, -1, 65536])
def test_a_keepalive_that_mqtt_has_not_is_told_with_its_option(options, seconds):
    with pytest.raises(ConfigError) as error:
        settings_of(dataclasses.replace(options, keepalive=seconds))
    due = "a number of seconds from 1 to 65535 is due"
    assert [str(fault) for fault in error.value.faults] == [f"keepalive: {seconds} came, {due}"]


def test_insecure_still_pins_the_operator_and_keeps_to_loopback(options):
    insecure = dataclasses.replace(options, insecure=True)
    with pytest.raises(ConfigError, match=r"10.0.0.5:8000 is not this machine") as error:
        settings_of(insecure)
    assert "server" in [fault.field for fault in error.value.faults]
    local = dataclasses.replace(insecure, broker="mqtt://127.0.0.1:1883", servers=("127.0.0.1:8000",))
    assert settings_of(local).tls is None
    assert settings_of(local).keyring.keyids


def test_without_insecure_a_plain_broker_is_refused(options):
    plain = dataclasses.replace(options, broker="mqtt://127.0.0.1:1883")
    with pytest.raises(ConfigError, match="is not encrypted"):
        settings_of(plain)


def test_a_supernode_needs_a_word_of_trust(options):
    stock = dataclasses.replace(options, link="supernode")
    with pytest.raises(ConfigError, match=r"runs on this device whatever code its server sends") as error:
        settings_of(stock)
    assert (error.value.exit_code, error.value.faults[0].field) == (2, "link")
    assert "--trust-server-code" in str(error.value)
    assert settings_of(dataclasses.replace(stock, trust_server_code=True)).link == "supernode"
    assert settings_of(options).link == "warm"
    with pytest.raises(ConfigError, match=r"'cold' came, warm or supernode is due"):
        settings_of(dataclasses.replace(options, link="cold"))


def test_every_bad_setting_is_named_at_once(tmp_path):
    with pytest.raises(ConfigError) as error:
        DeviceSettings(
            name="Cam 7",
            region="central",
            broker="mqtt://127.0.0.1:1883",
            servers=("nowhere", "127.0.0.1:99999"),
            data=DataSource("digits"),
            keyring=Keyring([SigningKey.generate().public]),
            tls=None,
            state=tmp_path,
            threads=0,
        )
    fields = [fault.field for fault in error.value.faults]
    assert fields == ["name", "region", "server", "server", "threads"]


def test_data_that_cannot_be_read_end_the_start_with_code_2(options):
    missing = dataclasses.replace(options, data="/nowhere/mnist.npz")
    with pytest.raises(DataError, match="no such file") as error:
        asyncio.run(main(missing, asyncio.Event()))
    assert error.value.exit_code == 2


def test_parts_are_disjoint_and_complete(options):
    parts = [own_data(DataSource(options.data, (index, 3))) for index in range(3)]
    assert sum(len(part) for part in parts) == 40


def test_where_no_broker_listens_the_command_ends_with_2_and_names_the_remedy(options, tmp_path):
    shorter = "import device_agent.agent as a; a.CONNECT_S = 0.5"
    script = f"{shorter}; from trellis.cli import main; raise SystemExit(main())"
    done = python(
        "-c",
        script,
        "device",
        "--name",
        "cam-7",
        "--region",
        "eu-1",
        "--data",
        options.data,
        "--insecure",
        "--keys",
        str(options.keys),
        "--broker",
        "mqtt://127.0.0.1:1",
        "--state",
        str(tmp_path / "s"),
    )
    assert done.returncode == 2, done.stderr
    assert "trellis broker" in done.stderr
    assert "Traceback" not in done.stderr
