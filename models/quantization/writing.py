"""A quantised file, written once it has been read, opened and run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from models.backends.graph import Array, padded
from models.datasets import Dataset
from models.export.writing import checked
from models.exported import Artefact, read_artefact
from models.inference import MAX_MODEL_BYTES, Predictor, exported_predictor
from models.manifest import Manifest, Quantization, QuantizationMethod, Runtime
from models.quantization.calibration import batches, calibration_samples
from trellis.errors import ArtefactError, Fault, InvalidInput, TrainingFailed

_Quantized = Callable[[bytes, Manifest, QuantizationMethod, Iterator[Array]], bytes]


def quantize(
    file: Path, method: QuantizationMethod, *, runtime: Runtime, path: Path, calibration: Dataset | None
) -> Manifest:
    """Write the file; see `models.quantization.quantize`."""
    artefact = _read(file, runtime)
    if artefact.manifest.quantization is not None:
        done = artefact.manifest.quantization.method
        fault = Fault("", f"is quantised already ({done})", "start from the float32 file")
        raise ArtefactError(f"artefact {artefact.where!r}", [fault])
    samples = None if calibration is None else calibration_samples(calibration, artefact.manifest)
    manifest = artefact.manifest.model_copy(
        update={
            "quantization": Quantization(
                method=method,
                calibration=None if calibration is None else calibration.name,
                samples=0 if samples is None else len(samples),
            )
        }
    )
    quantized = _method_of(runtime)
    pieces = iter(()) if samples is None else batches(samples, manifest)
    try:
        content = quantized(artefact.content, manifest, method, pieces)
    except Exception as error:  # quantisers raise whatever they raise
        raise _not_quantizable(manifest, method, f"{type(error).__name__}: {_one_line(error)}") from error
    with checked(path, content) as written:
        try:
            found = _answers(exported_predictor(_read(written, runtime)), samples)
        except (ArtefactError, TrainingFailed) as error:
            raise _not_quantizable(manifest, method, _one_line(error)) from error
        if not np.isfinite(found).all():
            # Where a runtime computes in float16, what is above 65,504 is infinite.
            raise _not_quantizable(manifest, method, "the answers of what came of it are not finite")
    return manifest


def _read(file: Path, runtime: Runtime) -> Artefact:
    return read_artefact(file, runtime=runtime, purpose="inference", max_bytes=MAX_MODEL_BYTES)


def _method_of(runtime: Runtime) -> _Quantized:
    if runtime == "onnx":
        from models.quantization import onnx  # noqa: PLC0415  # the packages of either are enough

        return onnx.quantized
    from models.quantization import tflite  # noqa: PLC0415  # as above

    return tflite.quantized


def _answers(predictor: Predictor, samples: Array | None) -> Array:
    """Return what the model says of some samples, of zeros where there are none."""
    size = predictor.batch or 1
    none = np.zeros((size, *predictor.shape), np.float32)
    return predictor.logits(none if samples is None else padded(samples[:size], size))


def _not_quantizable(manifest: Manifest, method: QuantizationMethod, problem: str) -> InvalidInput:
    return InvalidInput(
        f"model {manifest.model!r} cannot be quantised by {method} for {manifest.runtime}",
        [Fault("", problem, "try another method, or leave it as it is")],
    )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
