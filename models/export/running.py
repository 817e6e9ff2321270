"""Runs a program of an exported file by roles, as a device does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from models.arrays import Arrays
from models.manifest import Manifest

Run = Callable[[str, Mapping[str, np.ndarray[Any, Any]]], Arrays]
"""`run(program, inputs by role)` gives outputs by role; inputs that the program does not take are left."""


def open_file(path: Path, manifest: Manifest) -> Run:
    """Return what runs the programs of that file, on one thread."""
    return _onnx(path, manifest) if manifest.runtime == "onnx" else _tflite(path, manifest)


def _onnx(path: Path, manifest: Manifest) -> Run:
    import onnxruntime  # noqa: PLC0415  # either runtime alone is enough

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    alone = onnxruntime.RunOptions()
    alone.only_execute_path_to_fetches = True

    def run(program: str, inputs: Mapping[str, np.ndarray[Any, Any]]) -> Arrays:
        names = manifest.programs[program]
        fed = {name: inputs[role] for role, name in names.inputs.items()}
        outputs = session.run(list(names.outputs.values()), fed, alone)
        return dict(zip(names.outputs, map(np.asarray, outputs), strict=True))

    return run


def _tflite(path: Path, manifest: Manifest) -> Run:
    from ai_edge_litert.interpreter import Interpreter  # noqa: PLC0415  # as above

    interpreter = Interpreter(model_path=str(path), num_threads=1)
    runners = {name: interpreter.get_signature_runner(name) for name in manifest.programs}

    def run(program: str, inputs: Mapping[str, np.ndarray[Any, Any]]) -> Arrays:
        names = manifest.programs[program]
        fed = {name: inputs[role] for role, name in names.inputs.items()}
        outputs = runners[program](**fed)
        return {role: np.asarray(outputs[name]) for role, name in names.outputs.items()}

    return run
