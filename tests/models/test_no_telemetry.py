"""A runtime that would report to its maker does not: neither a word nor a file of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CODE = "import {module}, os; print(sorted(os.listdir(os.environ['TMPDIR'])))"


def left_by(module: str, folder: Path) -> str:
    """Return what a process that imports a module leaves where temporary files are."""
    # In CI, and in its own tests, ONNX Runtime keeps silent by itself.
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ORT_", "CI"))}
    done = subprocess.run(
        [sys.executable, "-c", CODE.format(module=module)],
        env={**kept, "TMPDIR": str(folder)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout.strip()


@pytest.mark.parametrize("module", ["models.backends.onnx", "models.backends.tflite"])
def test_a_runtime_leaves_no_identifier_behind(tmp_path: Path, module: str) -> None:
    assert left_by(module, tmp_path) == "[]"
