"""What stands in a graph beside the weights that it takes: the same for every task, whatever its seed.

An artefact is made with one seed and serves every task. An index or a mask that follows from the seed would
be another one at a device with PyTorch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import torch
from torch import nn

from models.export.digest import content_of, model_digest
from models.export.faults import TRAIN_WITH_TORCH, not_exportable
from models.export.source import Source
from models.manifest import Runtime

_REMEDY = f"make it a float32 buffer, or the same for every seed, {TRAIN_WITH_TORCH}"


def require_seedless(source: Source, runtime: Runtime) -> None:
    """Pass if two seeds put the same buffers and tensors of the module into the graph.

    Raises:
        InvalidInput: They do not; the first that differs is named.
    """
    other = dict(_inside(source.another, source.fed))
    for name, tensor in _inside(source.module, source.fed):
        if name not in other or content_of(tensor) != content_of(other[name]):
            dtype = str(tensor.dtype).removeprefix("torch.")
            problem = f"{name!r}, which is {dtype} and stands in the file itself, is another for every seed"
            module = name.rpartition(".")[0]
            raise not_exportable(source.model, runtime, problem, _REMEDY, module=module)


def seedless_digest(source: Source, runtime: Runtime) -> str:
    """Return the model's digest, if two seeds have the same one.

    Raises:
        InvalidInput: They do not: a number is drawn while the model is built.
    """
    first, second = (
        model_digest(source.model, module, source.tensors, shape=source.shape, classes=source.classes)
        for module in (source.module, source.another)
    )
    if first != second:
        problem = "it has a number in it, which stands in the file itself, that is another for every seed"
        raise not_exportable(source.model, runtime, problem, _REMEDY)
    return first


def inside(source: Source) -> dict[str, str]:
    """Return the SHA-256 of the arrays of `state_dict()` that stand in the graph, by name."""
    held = {tensor.name for tensor in source.tensors if tensor.kind == "constant"} - set(source.fed)
    arrays = source.module.state_dict()
    return {name: hashlib.sha256(content_of(arrays[name])).hexdigest() for name in arrays if name in held}


def _inside(module: nn.Module, fed: list[str]) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors of a module, also those outside `state_dict()`, that are no inputs of the graph."""
    for prefix, part in module.named_modules():
        own = [*part.named_parameters(recurse=False), *part.named_buffers(recurse=False), *vars(part).items()]
        for name, value in own:
            dotted = f"{prefix}.{name}" if prefix else name
            if isinstance(value, torch.Tensor) and dotted not in fed:
                yield dotted, value
