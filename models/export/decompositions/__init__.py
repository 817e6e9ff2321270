"""Backward passes in plain forward operators, so that a runtime without autograd computes them.

`table` maps PyTorch's operators to functions that say the same in operators which ONNX and TFLite have: no
scatter (LiteRT prepares none), no ConvTranspose where the runtime lacks a dilated one, no training operator.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch

from models.export.decompositions import activation, convolution, embedding, normalisation, pooling
from models.manifest import Runtime

Table = dict[torch._ops.OpOverload[..., Any], Callable[..., Any]]

_aten = torch.ops.aten


def table(runtime: Runtime) -> Table:
    """Return the decompositions with which a training step is traced for a runtime."""
    general = {**torch._decomp.core_aten_decompositions(), **torch._decomp.get_decompositions(_NORMALISATION)}
    chosen = cast(Table, general)
    chosen[_aten.convolution_backward.default] = partial(convolution.backward, runtime=runtime)
    chosen[_aten.max_pool2d_with_indices_backward.default] = pooling.max_pool_backward
    chosen[_aten.avg_pool2d_backward.default] = pooling.average_pool_backward
    chosen[_aten.native_group_norm.default] = partial(normalisation.group_norm, runtime=runtime)
    chosen[_aten.native_group_norm_backward.default] = partial(
        normalisation.group_norm_backward, runtime=runtime
    )
    if runtime == "onnx":
        chosen[_aten.threshold_backward.default] = activation.relu_backward
        chosen[_aten.elu.default] = activation.elu
        chosen[_aten.convolution.default] = convolution.forward
    chosen[_aten.elu_backward.default] = partial(activation.elu_backward, runtime=runtime)
    chosen[_aten.embedding_dense_backward.default] = embedding.backward
    return chosen


# torch.onnx makes an *inference* BatchNormalization of what it finds left of these.
_NORMALISATION: list[Any] = [
    _aten.native_batch_norm,
    _aten._native_batch_norm_legit,
    _aten._native_batch_norm_legit_functional,
    _aten._native_batch_norm_legit.no_stats,
    _aten.native_batch_norm_backward,
    _aten.native_layer_norm,
    _aten.native_layer_norm_backward,
]
