"""TFLite files: builtin operators, a signature for each program, the manifest among the model's metadata."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from models.export.faults import unsupported_operator
from models.export.graph import Graph
from models.manifest import METADATA_KEY, Manifest, Program
from models.own_code import is_models_own

OPSET_NAME = "tflite 3"
_IDENTIFIER = b"TFL3"
_ALIGNMENT = 16
"""Of constants in the file; the schema's force_align, which Python's flatbuffers forgets."""

_NO_OFFSET = 1
"""What LiteRT's own writer leaves where an offset is to come, or 0."""


def convert(model: str, graphs: Sequence[Graph]) -> bytes:
    """Return a TFLite model with a signature for every graph.

    Raises:
        InvalidInput: TFLite lacks an operator; the message names it and the module it stands in.
    """
    from litert_torch import Converter  # noqa: PLC0415  # it takes seconds

    converter = Converter()
    for graph in graphs:
        converter.signature(graph.programs[0], graph.module.eval(), graph.example)
    try:
        content: bytes = converter.convert().model_content()
    except Exception as error:  # its many steps raise whatever they raise
        if not is_models_own(error):
            raise
        raise unsupported_operator(model, "tflite", graphs, error) from error
    return content


def programs_of(content: bytes, graphs: Sequence[Graph]) -> dict[str, Program]:
    """Return which input and output of each signature is which.

    litert-torch counts: `args_0`, `args_1`, … and `output_0`, …; it leaves out inputs that nothing reads.
    """
    taken = {
        signature.signatureKey.decode(): {entry.name.decode() for entry in signature.inputs}
        for signature in schema.ModelT.InitFromPackedBuf(content).signatureDefs
    }
    found = {}
    for graph in graphs:
        name = graph.programs[0]
        inputs = {role: f"args_{index}" for index, role in enumerate(graph.inputs)}
        outputs = {role: f"output_{index}" for index, (_, role) in enumerate(graph.outputs)}
        there = {role: known for role, known in inputs.items() if known in taken[name]}
        found[name] = Program(inputs=there, outputs=outputs)
    return found


def finished(content: bytes, manifest: Manifest) -> bytes:
    """Return the file: the model with the manifest inside, in place of one that is there."""
    model = schema.ModelT.InitFromPackedBuf(content)
    added = schema.BufferT(np.frombuffer(manifest.to_json().encode(), dtype=np.uint8))
    metadata = list(model.metadata or [])
    there = [entry.buffer for entry in metadata if entry.name == METADATA_KEY.encode()]
    if there:
        model.buffers[there[0]] = added
    else:
        model.metadata = [*metadata, schema.MetadataT(METADATA_KEY, len(model.buffers))]
        model.buffers = [*model.buffers, added]
    model.buffers = [_Aligned(buffer, content) for buffer in model.buffers]
    builder = flatbuffers.Builder(len(content) + len(added.data))
    builder.Finish(model.Pack(builder), file_identifier=_IDENTIFIER)
    return bytes(builder.Output())


class _Aligned:
    """A buffer that is written where a runtime may read floats right out of the file.

    Args:
        buffer: Of a model that was read from `content`, behind which its data may lie: there AI Edge
            Quantizer puts all of a model of 256 KiB and more.
    """

    def __init__(self, buffer: Any, content: bytes) -> None:
        self._data = buffer.data
        if buffer.data is None and buffer.offset > _NO_OFFSET:
            self._data = np.frombuffer(content, np.uint8, buffer.size, buffer.offset)

    def Pack(self, builder: Any) -> int:  # noqa: N802  # as flatbuffers calls it
        data = None
        if self._data is not None:
            content = np.ascontiguousarray(self._data, dtype=np.uint8).tobytes()
            builder.StartVector(1, len(content), _ALIGNMENT)
            builder.head -= len(content)
            builder.Bytes[builder.head : builder.head + len(content)] = content
            data = builder.EndVector()
        schema.BufferStart(builder)
        if data is not None:
            schema.BufferAddData(builder, data)
        position: int = schema.BufferEnd(builder)
        return position
