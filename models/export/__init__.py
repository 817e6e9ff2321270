"""Models leave PyTorch as data: files that ONNX Runtime and LiteRT train, evaluate and predict with.

Importing this loads neither torch nor a converter; the extra `export` brings them.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from models.arrays import Arrays
from models.datasets import Normalize
from models.export.faults import exporting
from models.export.quiet import quiet
from models.manifest import Manifest, Runtime
from models.registry import ModelSpec, find_model
from trellis.errors import MissingExtra

TRAINING_BATCH = 32
"""Samples of the device's batches that a TFLite training artefact is for, where nothing else is said."""

MOST_AT_ONCE = 16
"""Larger batches go in as pieces, whose gradients are added up: LeNet takes 8 MB less than with 32 at once,
in the same time. A model with statistics of its batches takes them whole."""

_PACKAGES = {
    "onnx": ("torch", "onnx", "onnxscript", "onnxruntime"),
    "tflite": ("torch", "litert_torch", "ai_edge_litert", "flatbuffers"),
}


def export_training(
    model: str | ModelSpec,
    *,
    shape: tuple[int, ...],
    classes: int,
    runtime: Runtime,
    path: Path,
    batch: int = TRAINING_BATCH,
) -> Manifest:
    """Make `path` the artefact with which that runtime trains the model, and return what it says of itself.

    Before the file takes its name, its gradients on random samples are held against PyTorch's:
    `models.export.parity` says how.

    Args:
        model: A name of the registry, or a model of one's own.
        shape: The shape of one sample.
        classes: How many classes the model tells apart.
        runtime: `onnx` or `tflite`.
        path: The file; its folder is there.
        batch: Samples of the device's batches, which TFLite takes at once, or in pieces of 16 where the model
            keeps no statistics of them. ONNX takes any number.

    Raises:
        Refused: No such model.
        MissingExtra: What exports is not installed.
        InvalidInput: The model does not take such samples, or cannot be exported: the message names the
            operator, the module it stands in, and the remedy; or its gradients are not PyTorch's.
    """
    spec = find_model(model) if isinstance(model, str) else model
    _require_packages(runtime)
    with quiet(), exporting(spec.name, runtime):
        from models.export import training  # noqa: PLC0415  # it imports torch

        return training.export(spec, shape=shape, classes=classes, runtime=runtime, path=path, batch=batch)


def export_inference(
    model: str | ModelSpec,
    arrays: Arrays,
    *,
    shape: tuple[int, ...],
    classes: int,
    runtime: Runtime,
    path: Path,
    normalize: Normalize | None = None,
    seed: int = 0,
    batch: int = 1,
) -> Manifest:
    """Make `path` a file that predicts with trained weights, and return what it says of itself.

    Its logits on random samples are held against PyTorch's before it takes its name.

    Args:
        model: A name of the registry, or a model of one's own.
        arrays: The trained model's, by name.
        shape: The shape of one sample.
        classes: How many classes the model tells apart.
        runtime: `onnx` or `tflite`.
        path: The file; its folder is there.
        normalize: How samples are scaled before they go in; it is noted in the manifest, not in the graph.
        seed: The task's that trained it.
        batch: Samples that TFLite takes at once. ONNX takes any number.

    Raises:
        Refused: No such model.
        MissingExtra: What exports is not installed.
        TensorError: The arrays are not the model's.
        InvalidInput: As for `export_training`.
    """
    spec = find_model(model) if isinstance(model, str) else model
    _require_packages(runtime)
    with quiet(), exporting(spec.name, runtime):
        from models.export import inference  # noqa: PLC0415  # it imports torch

        return inference.export(
            spec,
            arrays,
            shape=shape,
            classes=classes,
            normalize=normalize,
            seed=seed,
            runtime=runtime,
            path=path,
            batch=batch,
        )


def _require_packages(runtime: Runtime) -> None:
    for package in _PACKAGES[runtime]:
        if importlib.util.find_spec(package) is None:
            raise MissingExtra(package, "export")
