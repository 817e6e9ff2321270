"""ONNX models of fewer bits, by ONNX Runtime's own quantiser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnx
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process
from onnxruntime.transformers.float16 import convert_float_to_float16
from onnxruntime.transformers.onnx_model import OnnxModel

from models.backends.graph import Array
from models.export.onnx import finished
from models.manifest import Manifest, QuantizationMethod

# Those whose integer form is ONNX's own: of an LSTM it is ONNX Runtime's.
_DYNAMIC = ["Conv", "Gemm", "MatMul", "Gather"]
_OWN_DOMAINS = ("", "ai.onnx")


def quantized(
    content: bytes, manifest: Manifest, method: QuantizationMethod, pieces: Iterator[Array]
) -> bytes:
    """Return the file of fewer bits with that manifest; calibration goes over the pieces."""
    if method == "fp16":
        halved = convert_float_to_float16(onnx.load_from_string(content), keep_io_types=True)
        OnnxModel(halved).topological_sort()  # it puts its casts behind all other nodes
        return finished(_serialized(halved), manifest)
    with TemporaryDirectory(prefix="trellis-quantization-") as folder:
        whole, ready, made = (Path(folder) / name for name in ("whole.onnx", "ready.onnx", "made.onnx"))
        whole.write_bytes(content)
        # It folds what can be folded, and finds the shapes without which nothing is quantised.
        quant_pre_process(whole, ready)
        if method == "int8-dynamic":
            # Unsigned: signed weights with unsigned inputs overflow on x86 processors without VNNI.
            quantize_dynamic(
                ready,
                made,
                op_types_to_quantize=_DYNAMIC,
                per_channel=True,
                weight_type=QuantType.QUInt8,
            )
        else:
            quantize_static(
                ready,
                made,
                _Reader(pieces, manifest.programs["predict"].inputs["x"]),
                quant_format=QuantFormat.QDQ,
                nodes_to_exclude=_normalising(onnx.load(ready)),
                per_channel=True,
                activation_type=QuantType.QInt8,
                weight_type=QuantType.QInt8,
            )
        return finished(_serialized(onnx.load(made)), manifest)


def _normalising(model: onnx.ModelProto) -> list[str]:
    """Return the nodes of group normalisation, which stay float: the quantiser takes no shared scales."""
    return [node.name for node in model.graph.node if node.op_type == "InstanceNormalization"]


def _serialized(model: Any) -> bytes:
    """Return the model's file without the operator sets that ONNX Runtime lists and nothing uses."""
    used = {node.domain for node in model.graph.node}
    kept = [opset for opset in model.opset_import if opset.domain in {*used, *_OWN_DOMAINS}]
    del model.opset_import[:]
    model.opset_import.extend(kept)
    content: bytes = model.SerializeToString()
    return content


class _Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime is not typed
    def __init__(self, pieces: Iterator[Array], name: str) -> None:
        self._pieces, self._name = pieces, name

    def get_next(self) -> dict[str, Array] | None:
        piece = next(self._pieces, None)
        return None if piece is None else {self._name: piece}
