"""PyTorch, ONNX Runtime and LiteRT in one federation: devices in an environment of their own each runtime."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from members import ROOT, Ground

MNIST = ROOT.parent / "shared" / "data" / "mnist.npz"
BACKENDS = ("torch", "onnx", "tflite")
FOREIGN = {
    "onnx": ("torch", "tensorflow", "ai_edge_litert"),
    "tflite": ("torch", "tensorflow", "onnxruntime"),
}
WITHIN_S = 600.0

pytestmark = pytest.mark.timeout(1800)


@pytest.fixture(scope="module", autouse=True)
def runtimes() -> None:
    """Every runtime has its environment: built here where `make test` has not done so."""
    subprocess.run(["make", "--silent", "runtimes"], cwd=ROOT, check=True, timeout=900)


def look(ground: Ground, seen: dict[str, set[str]]) -> None:
    """Note in `seen` the libraries of other runtimes that each backend's devices have in memory now.

    A device is told by the environment whose Python it is.
    """
    for process in ground.processes():
        with contextlib.suppress(psutil.Error, OSError):  # it has ended meanwhile
            words = process.cmdline()
            for backend in BACKENDS:
                if words[:1] == [str(ROOT / ".runtimes" / backend / "bin" / "python")]:
                    seen.setdefault(backend, set()).update(foreign(backend, process))


def foreign(backend: str, process: psutil.Process) -> list[str]:
    """Return the libraries of other runtimes that a device has in memory."""
    maps = Path(f"/proc/{process.pid}/maps").read_text(encoding="utf-8")
    files = {line.split(maxsplit=5)[5] for line in maps.splitlines() if line.count("/")}
    return [file for file in files if any(f"/{name}/" in file for name in FOREIGN.get(backend, ()))]


async def play(folder: Path, *options: str, backends: tuple[str, ...]) -> dict[str, Any]:
    """Run a demo to its end and return its summary; its devices are looked at for as long as it runs."""
    ground = Ground(folder)
    out = ground.logs / "demo.log"
    with out.open("wb") as log:
        arguments = ("demo", "--keep", "--json", "summary.json", "--backends", ",".join(backends), *options)
        process = ground.spawn(*arguments, out=log.fileno(), err=log.fileno())
    try:
        deadline = time.monotonic() + WITHIN_S
        seen: dict[str, set[str]] = {}
        while process.poll() is None:
            assert time.monotonic() < deadline, f"the demo runs after {WITHIN_S:g} s"
            look(ground, seen)
            await asyncio.sleep(0.25)
        assert process.returncode == 0
        assert "demo: round 1 of" in out.read_text()
        assert seen == {backend: set() for backend in backends}
        print(out.read_text()[-1200:])
    except BaseException as error:
        error.add_note(out.read_text()[-4000:])
        for log_file in sorted(ground.temporary.glob("trellis-demo-*/logs/*.log")):
            error.add_note(f"--- {log_file.name}\n{log_file.read_text()[-2500:]}")
        raise
    finally:
        await asyncio.to_thread(ground.clear)
        process.wait()
    summary: dict[str, Any] = json.loads((ground.folder / "summary.json").read_text())
    return summary


async def compare(folder: Path, *options: str) -> None:
    """Assert that three runtimes reach what PyTorch alone does, to one point."""
    alone = await play(folder / "alone", *options, backends=("torch",))
    mixed = await play(folder / "mixed", *options, backends=BACKENDS)
    assert [one["backend"] for one in mixed["devices"]] == ["torch", "onnx", "tflite", "torch"]
    assert {one["state"] for one in mixed["devices"]} == {"SUCCEEDED"}
    assert [(one["devices"], one["failed"]) for one in mixed["history"]] == [(4, 0)] * mixed["rounds"]
    for name, one in (("torch", alone), ("three runtimes", mixed)):
        print(f"{name}: accuracy {one['accuracy']:.4f}, {one['seconds']} s")
    assert abs(mixed["accuracy"] - alone["accuracy"]) <= 0.01


async def test_three_runtimes_reach_on_digits_what_pytorch_does(tmp_path: Path) -> None:
    await compare(tmp_path, "--rounds", "4")


@pytest.mark.long
async def test_three_runtimes_reach_at_the_centre_what_pytorch_does(tmp_path: Path) -> None:
    await compare(tmp_path, "--rounds", "4", "--tier", "central")


@pytest.mark.long
@pytest.mark.skipif(not MNIST.exists(), reason="there is no shared/data/mnist.npz beside the project")
async def test_three_runtimes_reach_on_mnist_what_pytorch_does(tmp_path: Path) -> None:
    await compare(tmp_path, "--rounds", "3", "--data", f"mnist={MNIST}")
