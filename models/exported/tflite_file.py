"""A TFLite file: its metadata, its signatures, and what it asks for that we do not allow.

Field numbers are those of LiteRT's schema.fbs, version 3. Allowed are the built-in operators, with all they
need in the one file. Not allowed are custom operators, those that run another subgraph, which may be for
ever, and what lies behind the FlatBuffer or beside it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from models.exported.flatbuffer import FlatFile, Table, element
from models.exported.graph_file import GraphFile, MalformedFile, Port, Ports

IDENTIFIER = b"TFL3"

_MODEL_OPERATORS, _MODEL_SUBGRAPHS, _MODEL_BUFFERS, _MODEL_METADATA, _MODEL_SIGNATURES = 1, 2, 4, 6, 7
_MODEL_EXTERNAL = (8, 9)
_CODE_EARLY, _CODE_CUSTOM, _CODE_BUILTIN = 0, 1, 3
_GRAPH_TENSORS, _GRAPH_INPUTS, _GRAPH_OUTPUTS, _GRAPH_OPERATORS = 0, 1, 2, 3
_TENSOR_SHAPE, _TENSOR_TYPE, _TENSOR_BUFFER, _TENSOR_NAME, _TENSOR_OPEN_SHAPE, _TENSOR_EXTERNAL = (
    0,
    1,
    2,
    3,
    7,
    10,
)
_OPERATOR_CODE, _OPERATOR_INPUTS, _OPERATOR_OUTPUTS, _OPERATOR_FAR_OPTIONS = 0, 1, 2, 9
_BUFFER_CONTENT, _BUFFER_OFFSET = 0, 1
_METADATA_NAME, _METADATA_BUFFER = 0, 1
_SIGNATURE_INPUTS, _SIGNATURE_OUTPUTS, _SIGNATURE_KEY, _SIGNATURE_GRAPH = 0, 1, 2, 4
_MAP_NAME, _MAP_TENSOR = 0, 1

_NOT_BUILT_IN = {32: "CUSTOM", 51: "DELEGATE", 127: "PLACEHOLDER", 173: "STABLEHLO_CUSTOM_CALL"}
_WITH_A_GRAPH_INSIDE = {
    31: "CALL",
    118: "IF",
    119: "WHILE",
    129: "CALL_ONCE",
    200: "STABLEHLO_WHILE",
    209: "STABLEHLO_CASE",
}
_OPTIONAL = -1  # an operator's input that is left out
_ABSENT_BUFFERS = (0, 1)  # LiteRT's own writer leaves a 1 where an offset is to come
_TYPES = {
    0: "float32",
    1: "float16",
    2: "int32",
    3: "uint8",
    4: "int64",
    6: "bool",
    7: "int16",
    9: "int8",
    10: "float64",
    12: "uint64",
    15: "uint32",
    16: "uint16",
}


@dataclass(frozen=True)
class _Parts:
    codes: list[Table]
    graphs: list[Table]
    buffers: list[Table]


def read_tflite(content: bytes, *, metadata_key: str) -> GraphFile:
    """Return what a TFLite file says.

    Raises:
        MalformedFile: It is no TFLite file.
    """
    model = FlatFile(content).root(IDENTIFIER)
    parts = _Parts(
        model.tables(_MODEL_OPERATORS), model.tables(_MODEL_SUBGRAPHS), model.tables(_MODEL_BUFFERS)
    )
    strange = [*_strange_parts(model, parts)]
    for graph in parts.graphs:
        strange += _strange(graph, parts)
    return GraphFile(_metadata(model, parts, metadata_key), _programs(model, parts), tuple(strange))


def _metadata(model: Table, parts: _Parts, key: str) -> bytes | None:
    found = [entry for entry in model.tables(_MODEL_METADATA) if entry.text(_METADATA_NAME) == key]
    if len(found) > 1:
        raise MalformedFile(f"its metadata have {len(found)} entries {key!r}, one is due")
    if not found:
        return None
    return element(parts.buffers, found[0].number(_METADATA_BUFFER, "I"), "buffer").content(_BUFFER_CONTENT)


def _programs(model: Table, parts: _Parts) -> dict[str, Ports]:
    programs: dict[str, Ports] = {}
    for signature in model.tables(_MODEL_SIGNATURES):
        key = signature.text(_SIGNATURE_KEY)
        if key in programs:
            raise MalformedFile(f"two signatures are called {key[:80]!r}")
        graph = element(parts.graphs, signature.number(_SIGNATURE_GRAPH, "I"), "subgraph")
        tensors = graph.tables(_GRAPH_TENSORS)
        inputs, outputs = (
            _ports(signature, side, tensors) for side in (_SIGNATURE_INPUTS, _SIGNATURE_OUTPUTS)
        )
        programs[key] = Ports(inputs, outputs)
    return programs


def _ports(signature: Table, side: int, tensors: list[Table]) -> dict[str, Port]:
    ports: dict[str, Port] = {}
    for entry in signature.tables(side):
        name = entry.text(_MAP_NAME)
        if name in ports:
            raise MalformedFile(f"two inputs or two outputs are called {name[:80]!r}")
        ports[name] = _port(element(tensors, entry.number(_MAP_TENSOR, "I"), "tensor"))
    return ports


def _port(tensor: Table) -> Port:
    code = tensor.number(_TENSOR_TYPE, "b")
    axes = tensor.numbers(_TENSOR_OPEN_SHAPE) or tensor.numbers(_TENSOR_SHAPE)
    return Port(_TYPES.get(code, f"type {code}"), tuple(None if size < 0 else size for size in axes))


def _strange_parts(model: Table, parts: _Parts) -> Iterator[str]:
    for code in parts.codes:
        # Files from before operator 127 have their number in the first field alone.
        number = max(code.number(_CODE_EARLY, "b"), code.number(_CODE_BUILTIN, "i"))
        if number in _NOT_BUILT_IN:
            name = code.text(_CODE_CUSTOM)[:80] or _NOT_BUILT_IN[number]
            yield f"it needs the operator {name!r}, which is not built into LiteRT"
        if (inner := _WITH_A_GRAPH_INSIDE.get(number)) is not None:
            yield f"it needs the operator {inner!r}, which may never end: steps written out are due"
    for index, buffer in enumerate(parts.buffers):
        buffer.length(_BUFFER_CONTENT)
        if buffer.number(_BUFFER_OFFSET, "Q") not in _ABSENT_BUFFERS:
            yield f"buffer {index} lies behind the FlatBuffer, all are due inside of it"
    if any(model.length(field) for field in _MODEL_EXTERNAL):
        yield "it has buffers in other files, all are due in this one"


def _strange(graph: Table, parts: _Parts) -> Iterator[str]:
    """Yield what is not allowed in a subgraph, all of whose indices are found to lead somewhere."""
    tensors = graph.tables(_GRAPH_TENSORS)
    for tensor in tensors:
        _port(tensor)
        element(parts.buffers, tensor.number(_TENSOR_BUFFER, "I"), "buffer")
        if tensor.number(_TENSOR_EXTERNAL, "I"):
            yield f"tensor {tensor.text(_TENSOR_NAME)[:80]!r} lies in another file, all are due in this one"
    ends = [*graph.numbers(_GRAPH_INPUTS), *graph.numbers(_GRAPH_OUTPUTS)]
    for operator in graph.tables(_GRAPH_OPERATORS):
        element(parts.codes, operator.number(_OPERATOR_CODE, "I"), "operator code")
        if operator.number(_OPERATOR_FAR_OPTIONS, "Q") not in _ABSENT_BUFFERS:
            yield "an operator's options lie behind the FlatBuffer, all are due inside of it"
        ends += operator.numbers(_OPERATOR_INPUTS) + operator.numbers(_OPERATOR_OUTPUTS)
    for end in ends:
        if end != _OPTIONAL:
            element(tensors, end, "tensor")
