"""ONNX files: standard operators, a batch of any size, the manifest among the model's metadata."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx
import torch
from onnx_ir.passes.common import CommonSubexpressionEliminationPass, RemoveUnusedNodesPass
from onnxscript.optimizer import fold_constants

from models.export.faults import unsupported_operator
from models.export.graph import Graph, has_batch
from models.manifest import METADATA_KEY, Manifest, Program, mask_role
from models.own_code import is_models_own

OPSET = 18
OPSET_NAME = f"ai.onnx {OPSET}"
_MOST_SAMPLES = 2**20
_BATCH_AXIS = "batch"


def convert(model: str, graph: Graph) -> bytes:
    """Return the graph as an ONNX model whose inputs and outputs are called after program and role.

    Raises:
        InvalidInput: ONNX lacks an operator; the message names it and the module it stands in.
    """
    batch = torch.export.Dim(_BATCH_AXIS, min=1, max=_MOST_SAMPLES)
    axes = tuple({0: batch} if has_batch(role) else None for role in graph.inputs)
    with torch.no_grad():
        try:
            exported = torch.export.export(graph.module, graph.example, dynamic_shapes=axes, strict=False)
            program = torch.onnx.export(
                exported,
                dynamo=True,
                opset_version=OPSET,
                input_names=list(graph.inputs),
                output_names=[f"{name}/{role}" for name, role in graph.outputs],
                verbose=False,
                optimize=False,
            )
        except Exception as error:  # torch.onnx raises whatever its many steps raise
            if not is_models_own(error):
                raise
            raise unsupported_operator(model, "onnx", [graph], error) from error
    if program is None:
        raise RuntimeError("torch.onnx.export gave nothing")
    # What is there twice goes first: the rewriting behind it takes ten times as long otherwise.
    CommonSubexpressionEliminationPass()(program.model)
    fold_constants(program.model)
    RemoveUnusedNodesPass()(program.model)
    program.optimize()
    content: bytes = program.model_proto.SerializeToString()
    return content


def programs_of(content: bytes, graph: Graph) -> dict[str, Program]:
    """Return which input and output of the ONNX graph is which."""
    taken = {value.name for value in onnx.ModelProto.FromString(content).graph.input}
    found = {}
    for program in graph.programs:
        roles = [role for role in graph.inputs if role in taken and graph.takes(program, role)]
        outputs = {role: f"{name}/{role}" for name, role in graph.outputs if name == program}
        found[program] = Program(inputs={role: role for role in roles}, outputs=outputs)
    return found


def finished(content: bytes, manifest: Manifest) -> bytes:
    """Return the file: without what tells of the exporting machine, with the manifest.

    Raises:
        onnx.checker.ValidationError: The converter made a model that is none.
    """
    bare = onnx.ModelProto.FromString(content)
    bare.doc_string = ""
    del bare.metadata_props[:]
    bare.metadata_props.add(key=METADATA_KEY, value=manifest.to_json())
    bare.graph.doc_string = ""
    del bare.graph.value_info[:]  # shapes in between, which every runtime infers by itself
    del bare.graph.metadata_props[:]
    _strip(bare.graph.node)
    _strip(bare.graph.initializer)
    for value in [*bare.graph.input, *bare.graph.output]:
        del value.metadata_props[:]
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param:
                axis.dim_param = _BATCH_AXIS
    _give_defaults(bare, manifest)
    onnx.checker.check_model(bare)
    whole: bytes = bare.SerializeToString(deterministic=True)
    return whole


def _give_defaults(model: onnx.ModelProto, manifest: Manifest) -> None:
    """Let dropout masks be optional: ONNX Runtime wants all other inputs, whatever is fetched."""
    for mask in manifest.masks:
        ones = np.ones((1, *mask.shape), dtype=np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(ones, name=mask_role(mask.name)))


def _strip(parts: Iterable[onnx.NodeProto] | Iterable[onnx.TensorProto]) -> None:
    for part in parts:
        part.doc_string = ""
        del part.metadata_props[:]
