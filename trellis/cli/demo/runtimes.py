"""The environments of a demo's devices, one for each training runtime: `make runtimes` builds them."""

from __future__ import annotations

from pathlib import Path

import trellis
from trellis.errors import ConfigError, Fault

RUNTIMES = ("torch", "onnx", "tflite")
FOLDER = Path(trellis.__file__).resolve().parent.parent / ".runtimes"
"""Beside the packages of the checkout."""


def parse_backends(text: str) -> tuple[str, ...]:
    """Return the backends that `torch,onnx` names.

    Raises:
        ConfigError: One is not known, or named twice.
    """
    names = tuple(name.strip() for name in text.split(","))
    unknown = [name for name in names if name not in RUNTIMES]
    if unknown or len(set(names)) < len(names):
        problem = f"{text[:80]!r} came, some of {', '.join(RUNTIMES)} are due, each once, with commas between"
        raise ConfigError("demo", [Fault("backends", problem)])
    return names


def python_of(backend: str, folder: Path = FOLDER) -> str:
    """Return the Python of the environment that holds the backend and nothing else.

    Raises:
        ConfigError: It was not built.
    """
    python = folder / backend / "bin" / "python"
    # The stamp comes last: without it the environment is half of one.
    if not (folder / backend / "installed").is_file() or not python.is_file():
        problem = f"there is no environment for {backend} at {python.parent.parent}"
        raise ConfigError("demo", [Fault("backends", problem, "run 'make runtimes' in Trellis's checkout")])
    return str(python)
