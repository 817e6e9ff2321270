"""A 64-bit ARM board without a compiler: the extras of the light runtimes come as wheels alone."""

from __future__ import annotations

import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from email.parser import BytesHeaderParser
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

pytestmark = pytest.mark.timeout(420)

ROOT = Path(__file__).parents[2]
# pip takes a platform by its word: what an older glibc allows must be named too.
PLATFORMS = (*(f"manylinux_2_{minor}_aarch64" for minor in range(28, 16, -1)), "manylinux2014_aarch64")
BOARD = default_environment() | {"platform_machine": "aarch64", "python_version": "3.11"}
LIMIT_S = 400.0


def requirements(extra: str) -> list[str]:
    """Return what `trellis-fl[extra]` of this checkout needs."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return [*project["dependencies"], *project["optional-dependencies"][extra]]


def download(extra: str, folder: Path) -> list[Path]:
    """Return the wheels that pip takes for a 64-bit ARM board with Python 3.11."""
    platforms = [word for platform in PLATFORMS for word in ("--platform", platform)]
    options = ["--quiet", "--only-binary=:all:", "--implementation", "cp", "--python-version", "3.11"]
    command = [sys.executable, "-m", "pip", "download", *options, *platforms, "--dest", str(folder)]
    command += ["-c", str(ROOT / "constraints.txt"), *requirements(extra)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    if done.returncode and "Failed to establish a new connection" in done.stderr:
        pytest.skip("the package index cannot be reached from here")
    assert done.returncode == 0, done.stderr[-3000:]
    return sorted(folder.iterdir(), key=lambda wheel: -wheel.stat().st_size)


def name_of(wheel: Path) -> str:
    return canonicalize_name(wheel.name.split("-")[0])


def missing(wheels: list[Path]) -> Iterator[str]:
    """Yield what these wheels need on the board but lack: pip has read the markers of this machine."""
    there = {name_of(wheel) for wheel in wheels}
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            (name,) = (one for one in archive.namelist() if one.endswith(".dist-info/METADATA"))
            needs = BytesHeaderParser().parsebytes(archive.read(name)).get_all("Requires-Dist", [])
        for need in map(Requirement, needs):
            due = need.marker is None or need.marker.evaluate(BOARD | {"extra": ""})
            if due and canonicalize_name(need.name) not in there:
                yield f"{wheel.name} needs {need}"


def test_every_base_dependency_is_one_that_a_device_or_the_reading_of_a_task_loads() -> None:
    modules = {"paho-mqtt": "paho.mqtt", "pyyaml": "yaml"}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    due = [Requirement(need).name for need in project["dependencies"]]
    code = (
        "import sys, device_agent.service, device_agent.command, trellis.cli.root, trellis.plain_yaml; "
        "print(*sys.modules)"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert [name for name in due if modules.get(name, name) not in loaded.split()] == []


# Measured: 90.0 and 83.5 MB; half of it is what Flower brings.
@pytest.mark.parametrize("extra", ["onnx", "tflite"])
def test_an_arm_board_gets_the_agent_from_wheels_of_150_mb_at_most(extra: str, tmp_path: Path) -> None:
    wheels = download(extra, tmp_path / "wheels")
    try:
        sizes = {wheel.name: wheel.stat().st_size for wheel in wheels}
        for name, size in sizes.items():
            print(f"{size / 1e6:8.2f} MB  {name}")
        total = sum(sizes.values()) / 1e6
        print(f"{total:8.2f} MB  {extra}: {len(wheels)} wheels for aarch64")
        assert [name for name in sizes if not name.endswith(("_aarch64.whl", "-none-any.whl"))] == []
        assert list(missing(wheels)) == []
        runtime = {"onnx": "onnxruntime", "tflite": "ai-edge-litert"}[extra]
        assert runtime in {name_of(wheel) for wheel in wheels}
        assert {"torch", "tensorflow", "scikit-learn"}.isdisjoint(map(name_of, wheels))
        assert total <= 150
    finally:
        for wheel in wheels:  # a hundred megabytes that pytest would keep for three runs
            wheel.unlink()
