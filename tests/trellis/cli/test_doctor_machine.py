"""What `trellis doctor` says of this machine: packages, ports, disk, memory, settings."""

from __future__ import annotations

import asyncio
import importlib.metadata
import importlib.util
import os
import re
import shutil
import socket
import sys
import threading
import time
import tomllib
from collections import namedtuple
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import trellis
from models import backends
from trellis.cli.doctor import machine
from trellis.cli.doctor.check import Check, Probe, Status, aside, blocking, examine, ok
from trellis.cli.doctor.settings import settings
from trellis.cli.root import every_command
from trellis.loopback import free_ports

ROOT = Path(trellis.__file__).parent.parent
Usage = namedtuple("Usage", "total used free")
Memory = namedtuple("Memory", "total available")


def by_name(checks: Iterable[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}


def project() -> dict[str, Any]:
    found: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return found


def test_python_and_flwr_are_those_that_the_project_is_pinned_to() -> None:
    checks = by_name(machine.python())
    assert checks["python"].status is Status.OK
    assert checks["flwr"] == ok("flwr", importlib.metadata.version("flwr"))
    assert any(pin.startswith(f"flwr>={machine.FLWR},<") for pin in project()["dependencies"])
    assert project()["requires-python"] == f">={'.'.join(map(str, machine.MIN_PYTHON))}"


@pytest.mark.parametrize(
    ("version", "said"), [("1.42.0", "1.42.0, this release knows 1.41"), (None, "not installed")]
)
def test_another_flwr_is_a_failure(monkeypatch: pytest.MonkeyPatch, version: str | None, said: str) -> None:
    monkeypatch.setattr(machine, "_version", lambda _: version)
    flwr = by_name(machine.python())["flwr"]
    assert (flwr.status, flwr.found, flwr.remedy) == (Status.FAILURE, said, "pip install 'flwr==1.41.*'")


def test_an_old_python_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 10, 4))
    assert by_name(machine.python())["python"].status is Status.FAILURE


def test_extras_are_those_of_the_project_and_torch_says_its_build() -> None:
    checks = by_name(machine.extras())
    assert {extra for extra, _ in machine.EXTRAS.values()} == set(project()["optional-dependencies"]) - {
        "dev"
    }
    assert re.fullmatch(r"2\.\d+\.\d+\S*, (CPU|CUDA \S+) build", checks["extra.torch"].found)
    for package in machine.EXTRAS:
        try:
            due = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            assert checks[f"extra.{package}"].status is Status.SKIPPED
            assert checks[f"extra.{package}"].remedy.startswith("pip install 'trellis-fl[")
        else:
            assert checks[f"extra.{package}"].found.startswith(due)


def test_the_build_of_torch_is_read_off_its_own_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Spec:
        origin = str(tmp_path / "__init__.py")

    monkeypatch.setattr(importlib.util, "find_spec", lambda _: Spec)
    version = tmp_path / "version.py"
    version.write_text("__version__ = '2.13.0'\ncuda: Optional[str] = '12.8'\nhip: Optional[str] = None\n")
    assert machine._torch_build() == "CUDA 12.8 build"
    version.write_text("cuda: Optional[str] = None\nhip: Optional[str] = None\n")
    assert machine._torch_build() == "CPU build"
    version.unlink()
    assert machine._torch_build() == "build unknown"


def test_what_counts_as_a_backend_is_what_a_device_can_train_with() -> None:
    offered = {machine.EXTRAS[package][0] for package in machine.BACKENDS}
    assert offered == {entry.extra for entry in backends._BACKENDS.values()}
    training = {package for package, (_, purpose) in machine.EXTRAS.items() if purpose.startswith("training")}
    assert training == set(machine.BACKENDS)


def test_without_any_backend_nobody_can_train(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_version", lambda _: None)
    assert by_name(machine.extras())["extras"].status is Status.WARNING


@pytest.fixture
def listener() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        yield taken.getsockname()[1]


def test_a_port_is_free_or_taken_by_somebody(listener: int) -> None:
    (free,) = free_ports(1)
    due = {listener: "server API, --api-port", free: "broker"}
    checks = by_name(machine.ports(due, ()))
    taken = checks[f"port.{listener}"]
    assert (taken.status, checks[f"port.{free}"].status) == (Status.WARNING, Status.OK)
    assert f"(pid {os.getpid()})" in taken.found
    # The same port counts as ours once what was asked for has answered there.
    assert by_name(machine.ports(due, {listener}))[f"port.{listener}"].status is Status.OK


def test_a_port_of_a_trellis_command_is_well(monkeypatch: pytest.MonkeyPatch, listener: int) -> None:
    monkeypatch.setattr(psutil.Process, "cmdline", lambda _: ["/x/python", "-m", "trellis", "broker"])
    (check,) = machine.ports({listener: "broker"}, ())
    assert check.status is Status.OK


@pytest.mark.parametrize(
    ("free", "status"),
    [
        (2**30, Status.OK),
        (2**30 - 1, Status.WARNING),
        (100 * 2**20, Status.WARNING),
        (100 * 2**20 - 1, Status.FAILURE),
    ],
)
def test_disk_space_is_judged(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, free: int, status: Status
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(2**40, 0, free))
    assert machine.disk("disk.runs", tmp_path / "runs" / "deep").status is status


def test_the_disk_is_that_of_the_folder(tmp_path: Path) -> None:
    assert "runs, which is not there yet" in machine.disk("disk.runs", tmp_path / "runs").found
    assert machine.disk("disk.runs", tmp_path).found.endswith(f"free for {tmp_path}")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_a_failure(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        assert machine.disk("disk.runs", tmp_path / "runs").status is Status.FAILURE
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.parametrize(
    ("mib", "status"), [(512, Status.OK), (511, Status.WARNING), (128, Status.WARNING), (127, Status.FAILURE)]
)
def test_memory_is_judged(monkeypatch: pytest.MonkeyPatch, mib: int, status: Status) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: Memory(2**33, mib * 2**20))
    (check,) = machine.memory()
    assert (check.status, check.found) == (status, f"{mib} MiB of 8.0 GiB available")


def test_settings_that_no_command_understands_are_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in [name for name in os.environ if name.startswith("TRELLIS_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    assert [check.status for check in settings(None, every_command())] == [Status.SKIPPED] * 2
    monkeypatch.setenv("TRELLIS_API_PRT", "1")
    monkeypatch.setenv("TRELLIS_FRONT_PORT", "many")
    monkeypatch.setenv("TRELLIS_REGION", "eu-1")
    file = tmp_path / "other.toml"
    file.write_text("[common]\nkeys = 'keys'\n[gateway]\napi-prt = 1\n[server]\nfront-port = 'x'\n")
    checks = by_name(settings(file, every_command()))
    assert checks["settings.file"].status is Status.FAILURE
    assert "gateway.api-prt: is no option of 'trellis gateway'" in checks["settings.file"].found
    assert "server.front-port: must be an integer" in checks["settings.file"].found
    environment = checks["settings.environment"]
    assert environment.status is Status.FAILURE
    assert "TRELLIS_API_PRT: is no setting (did you mean TRELLIS_API_PORT?)" in environment.found
    assert "TRELLIS_FRONT_PORT: 'many' is not a valid integer" in environment.found
    assert "TRELLIS_REGION" not in environment.found


def test_good_settings_are_listed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("TRELLIS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("TRELLIS_REGION", "eu-1")
    (tmp_path / "trellis.toml").write_text("[common]\nkeys = 'keys'\n[gateway]\napi-port = 1\n")
    monkeypatch.chdir(tmp_path)
    assert settings(None, every_command()) == [
        ok("settings.file", "trellis.toml: common, gateway"),
        ok("settings.environment", "TRELLIS_REGION"),
    ]


async def test_what_hangs_is_a_failure_at_the_deadline_and_the_rest_is_told() -> None:
    over = threading.Event()

    async def hang() -> list[Check]:
        await asyncio.sleep(60)
        return []

    def block() -> list[Check]:
        over.wait(60)
        return []

    began = time.monotonic()
    checks = await examine(
        [
            blocking(["disk"], block),
            Probe(("server", "server.clock"), hang),
            blocking(["python"], lambda: [ok("python", "well")]),
        ],
        deadline_s=2,
    )
    over.set()
    assert time.monotonic() - began < 30
    assert [(check.name, check.status) for check in checks] == [
        ("disk", Status.FAILURE),
        ("server", Status.FAILURE),
        ("server.clock", Status.FAILURE),
        ("python", Status.OK),
    ]
    assert checks[0].found == "no answer within 2 s"


async def test_what_is_raised_aside_is_raised_where_it_is_awaited() -> None:
    with pytest.raises(ZeroDivisionError):
        await aside(lambda: 1 / 0)
