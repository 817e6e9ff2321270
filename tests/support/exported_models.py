"""Training artefacts of the zoo's models, exported once, and many in one process: the converters load slowly.

They are kept by what they are made of, the exporter's and the models' own source and the pinned packages, so
that the workers of one run share them, and the next run has them while nothing of that changes.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

import pytest

from models.export import export_training
from models.manifest import Runtime
from trellis.errors import TrellisError

ROOT = Path(__file__).parents[2]
CACHE = ROOT / ".pytest_cache" / "artefacts"
BATCH = 8
"""Samples that the TFLite artefacts take at once."""

ZOO: dict[str, tuple[tuple[int, ...], int]] = {
    "softmax": ((1, 28, 28), 10),
    "mlp": ((1, 28, 28), 10),
    "lenet5": ((1, 28, 28), 10),
    "convnet": ((1, 28, 28), 10),
    "resnet8": ((3, 32, 32), 10),
    "mobile-cnn": ((3, 32, 32), 10),
    "sensor-cnn": ((6, 128), 6),
    "gru": ((1, 8, 8), 10),
}
"""Every model of the zoo, on samples that it is made for."""

DEEP = frozenset({"resnet8", "mobile-cnn"})
"""They take longer to export and to train than all others together."""
EVERY_MODEL = [pytest.param(model, marks=pytest.mark.long) if model in DEEP else model for model in ZOO]

LONGEST_S = 600


def training_artefact(model: str, runtime: Runtime) -> Path:
    """Return the file with which a runtime trains that model on the samples that `ZOO` names."""
    folder = CACHE / _ingredients()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{model}.{runtime}"
    deadline = time.monotonic() + LONGEST_S
    while not path.exists():
        assert time.monotonic() < deadline, f"{path.name} is not there after {LONGEST_S} s"
        with (folder / f"{runtime}.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:  # another worker is at it, or at one of the others
                time.sleep(0.2)
            else:
                _export(model, runtime, folder)
    return path


def _export(model: str, runtime: Runtime, folder: Path) -> None:
    """Export that model first, and in the same process the others that are as deep or as flat.

    What converts takes longer to be imported than most of the models to be converted.
    """
    command = [sys.executable, __file__, model, runtime, str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ran = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=LONGEST_S, check=False
    )
    assert ran.returncode == 0, ran.stderr


def _export_all(first: str, runtime: Runtime, folder: Path) -> None:
    alike = [model for model in ZOO if (model in DEEP) == (first in DEEP)]
    for model in sorted(alike, key=lambda one: one != first):
        shape, classes = ZOO[model]
        path = folder / f"{model}.{runtime}"
        try:
            if not path.exists():
                export_training(model, shape=shape, classes=classes, runtime=runtime, path=path, batch=BATCH)
        except TrellisError:
            if model == first:
                raise  # another is told where it is asked for


@cache
def _ingredients() -> str:
    digest = hashlib.sha256((ROOT / "constraints.txt").read_bytes())
    sources = [*(ROOT / "models/export").rglob("*.py"), *(ROOT / "models/zoo").rglob("*.py")]
    for source in sorted([*sources, ROOT / "models/manifest.py"]):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


if __name__ == "__main__":
    _export_all(sys.argv[1], "onnx" if sys.argv[2] == "onnx" else "tflite", Path(sys.argv[3]))
