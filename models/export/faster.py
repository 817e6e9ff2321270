"""Operators of ONNX that say at once what two or three say that PyTorch has: a pass over the memory each."""

from __future__ import annotations

from typing import Any

import onnx_ir
from onnxscript.rewriter import pattern


def rewrite(model: onnx_ir.Model) -> None:
    """Say in the model what can be said at once."""
    pattern.RewriteRuleSet([_HARD_SIGMOID]).apply_to_model(model)


def _clipped_sum(op: Any, x: Any) -> Any:
    return op.Clip(op.Add(x, 1.0), 0.0, 1.0)


def _hard_sigmoid(op: Any, x: Any) -> Any:
    return op.HardSigmoid(x, alpha=1.0, beta=1.0)


_HARD_SIGMOID = pattern.RewriteRule(_clipped_sum, _hard_sigmoid)
