"""Inference files: the forward pass with trained weights inside."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from models.arrays import copied, require_like
from models.backends.torch import build_module
from models.datasets import Normalize
from models.export import formats, parity, writing
from models.export.digest import model_digest
from models.export.graph import Graph
from models.manifest import Manifest, Runtime, Scaling, TensorEntry
from models.registry import ModelSpec

_TRACED_BATCH = 7


def export(
    spec: ModelSpec,
    arrays: Mapping[str, np.ndarray[Any, Any]],
    *,
    shape: tuple[int, ...],
    classes: int,
    normalize: Normalize | None,
    seed: int,
    runtime: Runtime,
    path: Path,
    batch: int,
) -> Manifest:
    """Write the file; see `models.export.export_inference`."""
    module = build_module(spec, shape=shape, classes=classes, seed=seed)
    require_like(arrays, {name: value.numpy() for name, value in module.state_dict().items()})
    module.load_state_dict({name: torch.from_numpy(array) for name, array in copied(arrays).items()})
    module.eval()
    fixed = None if runtime == "onnx" else batch
    tensors = _entries(module)
    digest = model_digest(spec.name, module, tensors, shape=shape, classes=classes)
    example = torch.zeros(fixed or _TRACED_BATCH, *shape)
    graph = Graph(module, ("x",), (("predict", "logits"),), (example,))

    converted = formats.convert(spec.name, [graph], runtime)
    manifest = Manifest(
        purpose="inference",
        runtime=runtime,
        model=spec.name,
        shape=shape,
        classes=classes,
        digest=digest,
        opset=converted.opset,
        batch=fixed,
        tensors=tensors,
        programs=converted.programs,
        normalize=None if normalize is None else Scaling(mean=normalize.mean, std=normalize.std),
    )
    with writing.checked(path, converted.with_manifest(manifest)) as written:
        parity.require_logits(module, [graph], manifest, written)
    return manifest


def _entries(module: nn.Module) -> tuple[TensorEntry, ...]:
    learned = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    return tuple(
        TensorEntry(
            name=name,
            shape=tuple(array.shape),
            dtype=str(array.dtype).removeprefix("torch."),
            kind="parameter" if name in learned else "constant",
        )
        for name, array in module.state_dict().items()
    )
