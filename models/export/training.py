"""Training artefacts: one file with which a device without PyTorch trains and evaluates a model."""

from __future__ import annotations

from pathlib import Path

from models.export import MOST_AT_ONCE, constants, formats, parity, writing
from models.export.graph import Graph, trace
from models.export.source import Source, open_source
from models.manifest import Manifest, Runtime
from models.registry import ModelSpec

_TRACED_BATCH = 7
"""Samples of the example where any number goes: a number that no layer is likely to have by itself."""


def export(
    spec: ModelSpec, *, shape: tuple[int, ...], classes: int, runtime: Runtime, path: Path, batch: int
) -> Manifest:
    """Write the artefact; see `models.export.export_training`."""
    source = open_source(spec, shape=shape, classes=classes, runtime=runtime)
    constants.require_seedless(source, runtime)
    if not any(tensor.kind == "buffer" for tensor in source.tensors):
        batch = min(batch, MOST_AT_ONCE)
    graphs = _traced(source, runtime, batch)
    digest = constants.seedless_digest(source, runtime)
    converted = formats.convert(source.model, graphs, runtime)
    manifest = Manifest(
        purpose="training",
        runtime=runtime,
        model=source.model,
        shape=shape,
        classes=classes,
        digest=digest,
        opset=converted.opset,
        batch=None if runtime == "onnx" else batch,
        tensors=source.tensors,
        inside=constants.inside(source),
        masks=source.masks,
        programs=converted.programs,
    )
    with writing.checked(path, converted.with_manifest(manifest)) as written:
        parity.require_gradients(spec, graphs, manifest, written)
    return manifest


def _traced(source: Source, runtime: Runtime, batch: int) -> list[Graph]:
    if runtime == "onnx":
        # One graph for both: what training and evaluation share is there once.
        return [trace(source, ["train", "eval"], runtime=runtime, batch=_TRACED_BATCH, dynamic=True)]
    return [trace(source, [name], runtime=runtime, batch=batch, dynamic=False) for name in ("train", "eval")]
