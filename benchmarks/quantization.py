"""What a model of fewer bits saves, and what it loses: file size and accuracy on test images.

LeNet-5 is trained here for a few epochs and exported for ONNX Runtime and LiteRT: as it is, with float16,
with weights of 8 bits (`int8-dynamic`), and with all in 8 bits (`int8-static`, whose ranges 512 training
images have shown). Each file then tells the test images, one a call, on one thread, as `predict` does.

    python benchmarks/quantization.py --data ../shared/data/mnist.npz --json quantization.json

ratio         the file's bytes over those of the float32 file for the same runtime; target: 0.35 for int8
points lost   of its accuracy in per cent, against the float32 file; target: 0.5; below 0 it gained
ms a sample   the median over the calls
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import workload
from report import Rows, parser, run, show, write

from models.arrays import Arrays
from models.backends import TrainPlan, open_backend
from models.datasets import Dataset, load, scale
from models.export import export_inference
from models.inference import open_predictor, predict
from models.manifest import Runtime
from models.quantization import METHODS, quantize

MODEL, FLOAT = "lenet5", "float32"
RUNTIMES: tuple[Runtime, ...] = ("onnx", "tflite")
COLUMNS = ("runtime", "quantization", "bytes", "ratio", "accuracy", "points_lost", "ms_per_sample")


def trained(data: Dataset, epochs: int) -> Arrays:
    """Return the model's arrays after that many passes over the data."""
    backend = open_backend(
        "torch", MODEL, shape=data.shape, classes=data.classes, seed=workload.SEED, threads=1
    )
    plan = TrainPlan(
        epochs=epochs,
        steps=None,
        batch_size=workload.BATCH,
        learning_rate=workload.LEARNING_RATE,
        momentum=0.5,
    )
    rng = np.random.default_rng(workload.SEED)
    return backend.train(backend.initial(), scale(data, None), plan, rng).arrays


def files(folder: Path, arrays: Arrays, train: Dataset) -> Iterator[tuple[Runtime, str, Path]]:
    """Write the model in every way; yield runtime, way and file."""
    for runtime in RUNTIMES:
        whole = folder / f"{FLOAT}.{runtime}"
        export_inference(MODEL, arrays, shape=train.shape, classes=train.classes, runtime=runtime, path=whole)
        yield runtime, FLOAT, whole
        for method in METHODS:
            small = folder / f"{method}.{runtime}"
            calibration = train if method == "int8-static" else None
            quantize(whole, method, runtime=runtime, path=small, calibration=calibration)
            yield runtime, method, small


def measure(source: str, epochs: int) -> Rows:
    """Return a row for each file; accuracies are in per cent."""
    train, test = (load(source, split=split) for split in ("train", "test"))
    print(f"{MODEL}: {epochs} epochs over {len(train):,} images", flush=True)
    rows: Rows = []
    with tempfile.TemporaryDirectory(prefix="trellis-bench-") as folder:
        # torch's compiler, which the export imports, would leave a folder of its own behind.
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(Path(folder) / "torchinductor")
        arrays = trained(train, epochs)
        for runtime, method, file in files(Path(folder), arrays, train):
            said = predict(open_predictor(file), test)
            if method == FLOAT:
                whole = file.stat().st_size, said.accuracy
            rows.append(
                {
                    "runtime": runtime,
                    "quantization": method,
                    "bytes": file.stat().st_size,
                    "ratio": file.stat().st_size / whole[0],
                    "accuracy": 100 * said.accuracy,
                    "points_lost": 100 * (whole[1] - said.accuracy),
                    "ms_per_sample": said.sample_ms,
                }
            )
            print(f"{method}.{runtime}: {said.accuracy:.4f}", flush=True)
    return rows


def main() -> None:
    options = parser(__doc__)
    options.add_argument(
        "--data", type=Path, default=workload.DEFAULT_DATA, metavar="FILE", help="MNIST as NPZ"
    )
    options.add_argument("--epochs", type=int, default=2, help="passes over the training images (default: 2)")
    chosen = options.parse_args()
    if not chosen.data.exists():
        options.error(f"there is no {chosen.data}: --data names MNIST as an NPZ file")
    rows = measure(str(chosen.data), chosen.epochs)
    show(rows, COLUMNS, title=f"{MODEL} on {chosen.data.stem}'s test images, one a call, one thread")
    write(rows, chosen.json)


if __name__ == "__main__":
    run(main)
