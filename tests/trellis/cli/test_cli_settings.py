"""Where an option's value comes from: typed, environment, the command's section, [common], default."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from machines import LIMIT_S, TRELLIS

import trellis
from trellis.cli import main

ROOT = Path(trellis.__file__).parent.parent
Asked = Callable[..., str]


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Asked:
    """Runs a command in a folder with these settings, and returns what it said on stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str, settings: str = "", code: int = 1) -> str:
        if settings:
            Path("trellis.toml").write_text(settings, encoding="utf-8")
        assert main(arguments) == code
        return capsys.readouterr().err

    return run


# Nobody listens on ports 1 to 4: the error names the URL that was tried.
SETTINGS = '[task]\nserver = "http://127.0.0.1:2"\n[common]\nserver = "http://127.0.0.1:1"\n'


def test_common_goes_before_the_default(asked: Asked) -> None:
    assert "http://127.0.0.1:1 does not" in asked(
        "task", "list", settings='[common]\nserver = "http://127.0.0.1:1"\n'
    )


def test_the_commands_section_goes_before_common(asked: Asked) -> None:
    assert "http://127.0.0.1:2 does not" in asked("task", "list", settings=SETTINGS)


def test_the_environment_goes_before_the_file(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRELLIS_SERVER", "http://127.0.0.1:3")
    assert "http://127.0.0.1:3 does not" in asked("task", "list", settings=SETTINGS)


def test_what_is_typed_goes_first(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRELLIS_SERVER", "http://127.0.0.1:3")
    said = asked("task", "list", "--server", "http://127.0.0.1:4", settings=SETTINGS)
    assert "http://127.0.0.1:4 does not" in said


def test_a_file_may_be_named_before_the_command_or_in_the_environment(
    asked: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other.toml"
    other.write_text(SETTINGS, encoding="utf-8")
    assert "http://127.0.0.1:2 does not" in asked("--config", str(other), "task", "list")
    monkeypatch.setenv("TRELLIS_CONFIG", str(other))
    assert "http://127.0.0.1:2 does not" in asked("task", "list")


def test_a_value_that_an_option_refuses_is_a_fault_of_the_file(asked: Asked) -> None:
    said = asked("broker", settings="[broker]\nport = 70000\n", code=2)
    assert "broker.port: 70000 is not in the range 0<=x<=65535" in said


@pytest.mark.parametrize(
    "command", [("server",), ("gateway", "--region", "eu-1"), ("device", "--region", "eu-1", "--name", "d")]
)
def test_a_log_level_that_there_is_not_is_refused_with_those_that_there_are(
    asked: Asked, command: tuple[str, ...]
) -> None:
    said = asked(*command, "--log-level", "loud", code=2)
    assert "'loud' is not one of 'debug', 'info', 'warning', 'error'" in said
    said = asked(*command, settings=f'[{command[0]}]\nlog-level = "loud"\n', code=2)
    assert f"{command[0]}.log-level: 'loud' is not one of 'debug', 'info', 'warning', 'error'" in said


def test_a_misspelt_key_is_refused(asked: Asked) -> None:
    said = asked("broker", settings="[broker]\nprot = 1883\n", code=2)
    assert "broker.prot: is no option of 'trellis broker' (did you mean port?)" in said


def test_a_misspelt_key_of_common_is_refused_after_asking_every_command(asked: Asked) -> None:
    said = asked("task", "list", settings='[common]\nborker = "x"\n', code=2)
    assert "common.borker: is no command's option (did you mean broker?)" in said


def test_a_misspelt_variable_is_refused(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRELLIS_SREVER", "x")
    assert "TRELLIS_SREVER: is no setting (did you mean TRELLIS_SERVER?)" in asked("task", "list", code=2)


def test_another_commands_variable_is_no_error(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRELLIS_FRONT_PORT", "8000")
    assert "does not answer" in asked("task", "list", "--server", "http://127.0.0.1:4")


def test_an_operator_beside_a_device_keeps_its_own_server(
    asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRELLIS_SERVER", "10.0.0.5:8000")
    said = asked("task", "list", code=2)
    assert "'10.0.0.5:8000': must be http://HOST:PORT or https://HOST:PORT" in said
    assert "a device's HOST:PORT may stand in TRELLIS_DEVICE_SERVER" in said
    monkeypatch.setenv("TRELLIS_DEVICE_SERVER", "10.0.0.5:8000")
    monkeypatch.setenv("TRELLIS_SERVER", "http://127.0.0.1:3")
    assert "http://127.0.0.1:3 does not" in asked("task", "list")


@pytest.mark.parametrize("own", [None, "127.0.0.1:5 127.0.0.1:6"])
def test_a_device_beside_an_operator_keeps_its_own_servers(
    asked: Asked, monkeypatch: pytest.MonkeyPatch, own: str | None
) -> None:
    asked("init", code=0)
    monkeypatch.setenv("TRELLIS_SERVER", "http://127.0.0.1:3")
    if own is not None:
        monkeypatch.setenv("TRELLIS_DEVICE_SERVER", own)
    # A process of its own: a device that comes so far has set up its process's log and imports.
    ended = subprocess.run(
        [*TRELLIS, "device", "--name", "cam-1", "--threads", "0"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    said = ended.stderr
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "threads" in said
    told = "server: 'http://127.0.0.1:3' came, HOST:PORT is due (such as 10.0.0.5:8000; where TRELLIS_SERVER"
    assert (told in said) == (own is None)
    assert ("give a device TRELLIS_DEVICE_SERVER" in said) == (own is None)


def test_help_comes_even_with_a_broken_file(asked: Asked) -> None:
    asked("task", "list", "--help", settings="[[[", code=0)
