"""Training artefacts of the zoo's models, exported once: a conversion takes up to a minute.

They are kept by what they are made of, the exporter's and the models' own source and the pinned packages, so
that the workers of one run share them, and the next run has them while nothing of that changes.
"""

from __future__ import annotations

import fcntl
import hashlib
import subprocess
import sys
from functools import cache
from pathlib import Path

from models.manifest import Runtime

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

LONGEST_S = 600


def training_artefact(model: str, runtime: Runtime) -> Path:
    """Return the file with which a runtime trains that model on the samples that `ZOO` names."""
    shape, classes = ZOO[model]
    folder = CACHE / _ingredients()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{model}.{runtime}"
    with (folder / f"{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another worker may be at it
        if not path.exists():
            sizes = ["--shape", ",".join(map(str, shape)), "--classes", str(classes), "--batch", str(BATCH)]
            wanted = ["--format", runtime, "--for", "training", "-o", str(path)]
            command = [sys.executable, "-m", "trellis", "export", model, *sizes, *wanted]
            ran = subprocess.run(
                command, cwd=ROOT, capture_output=True, text=True, timeout=LONGEST_S, check=False
            )
            assert ran.returncode == 0, ran.stderr
    return path


@cache
def _ingredients() -> str:
    digest = hashlib.sha256((ROOT / "constraints.txt").read_bytes())
    sources = [*(ROOT / "models/export").rglob("*.py"), *(ROOT / "models/zoo").rglob("*.py")]
    for source in sorted([*sources, ROOT / "models/manifest.py"]):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:16]
