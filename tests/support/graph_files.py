"""Small artefacts made by hand: files as our exporters write them, and files as they must not be.

The ONNX one is softmax regression on three numbers a sample, two classes, with its gradient written out; it
trains. The TFLite one adds two numbers, under the names of a training artefact; it is only to be read.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import flatbuffers
import onnx
from ai_edge_litert import schema_py_generated as schema

from models.manifest import METADATA_KEY, Manifest, Program, TensorEntry

SHAPE, CLASSES = (3,), 2
TENSORS = {"fc.weight": (2, 3), "fc.bias": (2,)}

TINY: dict[str, Any] = {
    "model": {"name": "tiny"},
    "data": {"name": "blobs", "shape": list(SHAPE), "classes": CLASSES, "min_samples": 10},
}
"""What a task says that trains it."""

_ONNX = """
<ir_version: 8, opset_import: ["" : 18]>
tiny (float[2,3] weight, float[2] bias, float[batch,3] x, int64[batch] y, float[batch] w)
  => (float loss, float correct, float[2,3] dweight, float[2] dbias, float[batch,2] logits)
  <int64 depth = {2}, float[2] ends = {0, 1}, int64[1] zero = {0}, int64[1] one = {1}>
{
  logits = Gemm <transB = 1> (x, weight, bias)
  odds = LogSoftmax <axis = 1> (logits)
  truth = OneHot <axis = 1> (y, depth, ends)
  picked = Mul (odds, truth)
  told = ReduceSum <keepdims = 0> (picked, one)
  counted = Mul (told, w)
  sum = ReduceSum <keepdims = 0> (counted)
  samples = ReduceSum <keepdims = 0> (w)
  mean = Div (sum, samples)
  loss = Neg (mean)
  best = ArgMax <axis = 1, keepdims = 0> (logits)
  right = Equal (best, y)
  hits = Cast <to = 1> (right)
  counts = Mul (hits, w)
  correct = ReduceSum <keepdims = 0> (counts)
  chances = Exp (odds)
  error = Sub (chances, truth)
  share = Div (w, samples)
  column = Unsqueeze (share, one)
  slope = Mul (error, column)
  dweight = Gemm <transA = 1> (slope, x)
  dbias = ReduceSum <keepdims = 0> (slope, zero)
}
"""


def manifest(runtime: str, **changed: Any) -> Manifest:
    """Return the manifest of a tiny artefact."""
    inputs = {"tensor:fc.weight": "weight", "tensor:fc.bias": "bias", "x": "x", "y": "y", "w": "w"}
    told = {"loss": "loss", "correct": "correct"}
    gradients = {"gradient:fc.weight": "dweight", "gradient:fc.bias": "dbias"}
    due: dict[str, Any] = {
        "purpose": "training",
        "runtime": runtime,
        "model": "tiny",
        "shape": SHAPE,
        "classes": CLASSES,
        "digest": "0" * 64,
        "opset": "ai.onnx 18" if runtime == "onnx" else "tflite 3",
        "batch": None if runtime == "onnx" else 4,
        "tensors": [
            TensorEntry(name=name, shape=shape, dtype="float32", kind="parameter")
            for name, shape in TENSORS.items()
        ],
        "programs": {
            "train": Program(inputs=inputs, outputs=told | gradients),
            "eval": Program(inputs=inputs, outputs=told | {"logits": "logits"}),
        },
    }
    return Manifest(**{**due, **changed})


def onnx_model(said: Manifest | None = None) -> onnx.ModelProto:
    """Return the tiny model with its manifest, to be changed and written."""
    model = onnx.parser.parse_model(_ONNX)
    entry = model.metadata_props.add()
    entry.key, entry.value = METADATA_KEY, (said or manifest("onnx")).to_json()
    return model


def write_onnx(path: Path, model: onnx.ModelProto | None = None) -> Path:
    """Return `path`, now a file of the model."""
    path.write_bytes((model or onnx_model()).SerializeToString())
    return path


def write_tflite(
    path: Path, *, said: Manifest | None = None, change: Callable[[Any], None] = lambda _: None
) -> Path:
    """Return `path`, now a file of the tiny model in LiteRT's schema, after `change` has had it."""
    model = _tflite_model((said or manifest("tflite")).to_json())
    change(model)
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    path.write_bytes(bytes(builder.Output()))
    return path


def _tflite_model(text: str) -> Any:
    model = schema.ModelT()
    model.version = 3
    add = schema.OperatorCodeT()
    add.deprecatedBuiltinCode = add.builtinCode = schema.BuiltinOperator.ADD
    model.operatorCodes = [add]
    kept = schema.BufferT()
    kept.data = list(text.encode())
    model.buffers = [schema.BufferT(), kept]
    entry = schema.MetadataT()
    entry.name, entry.buffer = METADATA_KEY, 1
    model.metadata = [entry]
    sides = [
        {"weight": (2, 3), "bias": (2,), "x": (4, 3), "y": (4,), "w": (4,)},
        {"loss": (), "correct": (), "dweight": (2, 3), "dbias": (2,), "logits": (4, 2)},
    ]
    model.subgraphs = [_subgraph({**sides[0], **sides[1]}, len(sides[0]))]
    model.signatureDefs = [
        _signature("train", list(sides[0]), ["loss", "correct", "dweight", "dbias"]),
        _signature("eval", list(sides[0]), ["loss", "correct", "logits"]),
    ]
    return model


def _subgraph(shapes: dict[str, tuple[int, ...]], inputs: int) -> Any:
    graph = schema.SubGraphT()
    graph.tensors = []
    for name, shape in shapes.items():
        tensor = schema.TensorT()
        tensor.name, tensor.shape = name, list(shape)
        tensor.type = schema.TensorType.INT32 if name == "y" else schema.TensorType.FLOAT32
        graph.tensors.append(tensor)
    graph.inputs, graph.outputs = list(range(inputs)), list(range(inputs, len(shapes)))
    add = schema.OperatorT()
    add.inputs, add.outputs = [0, -1], [inputs]
    graph.operators = [add]
    return graph


def _signature(key: str, inputs: list[str], outputs: list[str]) -> Any:
    order = ["weight", "bias", "x", "y", "w", "loss", "correct", "dweight", "dbias", "logits"]
    signature = schema.SignatureDefT()
    signature.signatureKey, signature.subgraphIndex = key, 0
    signature.inputs, signature.outputs = (
        [_named(name, order.index(name)) for name in names] for names in (inputs, outputs)
    )
    return signature


def _named(name: str, index: int) -> Any:
    entry = schema.TensorMapT()
    entry.name, entry.tensorIndex = name, index
    return entry
