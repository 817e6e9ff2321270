"""Which ports `trellis doctor` looks at: those that services here would take."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from trellis.cli.doctor.ports import Named, due
from trellis.cli.root import every_command

FRONT, API = "server's front, --front-port", "server API, --api-port"
GATEWAY = "gateway API, --api-port"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, and no variables of ours."""
    for name in [name for name in os.environ if name.startswith("TRELLIS_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def found(file: Path | None = None, **named: int) -> dict[int, str]:
    return due(file, every_command(), Named(**named))


def test_without_settings_they_are_the_default_ones() -> None:
    assert found() == {8000: FRONT, 8080: API, 8081: GATEWAY, 1883: "broker"}


def test_the_settings_file_says_which(folder: Path) -> None:
    text = "[common]\nkeys = 'keys'\n[server]\nfront-port = 28000\napi-port = 28080\n"
    (folder / "trellis.toml").write_text(f"{text}[gateway]\nfront_port = 28002\n")
    due_here = {
        28000: FRONT,
        28080: API,
        28002: "gateway's front, --front-port",
        8081: GATEWAY,
        8883: "broker",
    }
    assert found() == due_here
    other = folder / "other.toml"
    other.write_text("[common]\nkeys = 'keys'\ninsecure = true\n[broker]\nhost = '127.0.0.1'\n")
    assert found(other) == {8000: FRONT, 8080: API, 8081: GATEWAY, 1883: "broker"}


def test_the_environment_goes_before_the_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "trellis.toml").write_text("[server]\nfront-port = 28000\n[gateway]\napi-port = 28081\n")
    monkeypatch.setenv("TRELLIS_FRONT_PORT", "38000")
    monkeypatch.setenv("TRELLIS_API_PORT", "38080")
    both = f"{FRONT}; gateway's front, --front-port"
    assert found() == {38000: both, 38080: f"{API}; {GATEWAY}", 1883: "broker"}


def test_what_was_named_goes_before_what_is_set_and_its_front_is_not_guessed() -> None:
    assert found(server=28080, gateway=28081, broker=28883) == {28080: API, 28081: GATEWAY, 28883: "broker"}
    assert found(server=8080) == found()


@pytest.mark.parametrize("text", ["[server\n", "[server]\nfront-port = 'x'\n", "[server]\nfront-prt = 1\n"])
def test_a_file_with_faults_counts_for_nothing_here(folder: Path, text: str) -> None:
    (folder / "trellis.toml").write_text(text)
    assert found() == {8000: FRONT, 8080: API, 8081: GATEWAY, 1883: "broker"}


def test_a_free_port_is_none_to_look_at(folder: Path) -> None:
    (folder / "trellis.toml").write_text("[server]\nfront-port = 0\napi-port = 0\n")
    assert found() == {8081: GATEWAY, 1883: "broker"}
