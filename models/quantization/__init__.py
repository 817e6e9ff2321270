"""Trained models of fewer bits: a smaller file of an exported one, for the same runtime.

Importing this loads no converter; the extra `export` brings them.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import get_args

from models.datasets import Dataset
from models.export.quiet import quiet
from models.manifest import Manifest, QuantizationMethod, Runtime
from trellis.errors import ConfigError, Fault, MissingExtra

__all__ = ["METHODS", "quantize", "require_calibration"]

METHODS: tuple[QuantizationMethod, ...] = get_args(QuantizationMethod)

_PACKAGES = {
    "onnx": ("onnx", "onnxruntime", "torch"),
    "tflite": ("ai_edge_quantizer", "ai_edge_litert", "flatbuffers"),
}


def quantize(
    file: Path,
    method: QuantizationMethod,
    *,
    runtime: Runtime,
    path: Path,
    calibration: Dataset | None = None,
) -> Manifest:
    """Make `path` the model in `file` with fewer bits, and return what it says of itself.

    What goes in and comes out stays float32. The new file is read, opened and run before it takes its name.

    Args:
        file: An inference artefact as `models.export.export_inference` writes it.
        method: See `models.manifest.Quantization`.
        runtime: Whose format the file has.
        path: The new file, which may be the old one; its folder is there.
        calibration: Samples as read, for `int8-static` alone: the ranges of what goes through the model are
            measured on at most `models.quantization.calibration.SAMPLES` of them.

    Raises:
        MissingExtra: What quantises is not installed.
        ArtefactError: The file is broken, for training, or quantised already.
        ConfigError: Calibration data where none are due, or none where they are.
        DataError: The calibration data are not the model's.
        InvalidInput: The quantiser, or the runtime afterwards, does not take the model.
    """
    require_calibration(method, given=calibration is not None)
    for package in _PACKAGES[runtime]:
        if importlib.util.find_spec(package) is None:
            raise MissingExtra(package, "export")
    with quiet():
        from models.quantization import writing  # noqa: PLC0415  # it imports the converters

        return writing.quantize(file, method, runtime=runtime, path=path, calibration=calibration)


def require_calibration(method: QuantizationMethod, *, given: bool) -> None:
    """Pass if calibration data are given where, and only where, the method needs them.

    Raises:
        ConfigError: They are not.
    """
    if method == "int8-static" and not given:
        problem = "int8-static needs samples, to measure the ranges of what goes through the model"
        raise ConfigError("options", [Fault("calibrate", problem, "--calibrate DATA, or int8-dynamic")])
    if method != "int8-static" and given:
        raise ConfigError("options", [Fault("calibrate", f"{method} measures nothing", "leave it out")])
