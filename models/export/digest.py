"""The digest by which a model is the same model, whatever file it is exported to."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import torch
from torch import nn

from models.export.graph import trace_forward
from models.manifest import TensorEntry


def model_digest(
    model: str, module: nn.Module, tensors: Sequence[TensorEntry], *, shape: tuple[int, ...], classes: int
) -> str:
    """Return the SHA-256 of names, shapes and dtypes, and of the operators of the forward pass.

    Weights don't count; what the graph has inside besides them does (a table of positions, say).
    """
    digest = hashlib.sha256()
    arrays = [[tensor.name, tensor.shape, tensor.dtype] for tensor in tensors]
    said = {"model": model, "shape": shape, "classes": classes, "arrays": arrays}
    digest.update(json.dumps(said, sort_keys=True).encode())
    forward = trace_forward(module, [tensor.name for tensor in tensors if tensor.dtype == "float32"], shape)
    for node in forward.graph.nodes:
        digest.update(f"{node.format_node()}\n".encode())
        if node.op == "get_attr":
            inside = getattr(forward, str(node.target))
            if isinstance(inside, torch.Tensor):
                digest.update(content_of(inside))
    return digest.hexdigest()


def content_of(tensor: torch.Tensor) -> bytes:
    """Return the bytes of a tensor's numbers, in their order, also of a dtype that numpy has not."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
