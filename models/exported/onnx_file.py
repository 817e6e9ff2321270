"""An ONNX file: its metadata, its inputs and outputs, and what it asks for that we do not allow.

Field numbers are those of onnx.proto3 (IR version 10). Allowed are the operators of ONNX itself, with all
they need in the one file. Not allowed are operators and functions of others, those with a graph inside,
which may run for ever, tensors that lie in other files, and graphs that train themselves.
"""

from __future__ import annotations

from collections.abc import Iterator

from models.exported.graph_file import GraphFile, MalformedFile, Port, Ports
from models.exported.protobuf import Budget, Message

STANDARD_DOMAINS = ("", "ai.onnx")
WITH_A_GRAPH_INSIDE = ("If", "Loop", "Scan", "SequenceMap")
"""Nothing stops a step that a runtime has begun, and a loop may have any number of turns."""

_MODEL_GRAPH, _MODEL_OPSETS, _MODEL_METADATA, _MODEL_TRAINING, _MODEL_FUNCTIONS = 7, 8, 14, 20, 25
_KEY, _VALUE = 1, 2
_OPSET_DOMAIN = 1
_GRAPH_NODES, _GRAPH_INITIALIZERS, _GRAPH_INPUTS, _GRAPH_OUTPUTS, _GRAPH_SPARSE = 1, 5, 11, 12, 15
_NODE_NAME, _NODE_OPERATOR, _NODE_ATTRIBUTES, _NODE_DOMAIN = 3, 4, 5, 7
_ATTRIBUTE_TENSORS, _ATTRIBUTE_GRAPHS, _ATTRIBUTE_SPARSE = (5, 10), (6, 11), (22, 23)
_SPARSE_PARTS = (1, 2)
_TENSOR_NAME, _TENSOR_EXTERNAL, _TENSOR_LOCATION, _EXTERNAL = 8, 13, 14, 1
_PORT_NAME, _PORT_TYPE, _TYPE_TENSOR, _TENSOR_DTYPE, _TENSOR_SHAPE = 1, 2, 1, 1, 2
_SHAPE_AXES, _AXIS_SIZE = 1, 1

_DTYPES = {
    1: "float32",
    2: "uint8",
    3: "int8",
    4: "uint16",
    5: "int16",
    6: "int32",
    7: "int64",
    9: "bool",
    10: "float16",
    11: "float64",
    12: "uint32",
    13: "uint64",
}


def read_onnx(content: bytes, *, metadata_key: str) -> GraphFile:
    """Return what an ONNX file says.

    Raises:
        MalformedFile: It is no ONNX file.
    """
    model = Message(memoryview(content), Budget())
    graph = model.message(_MODEL_GRAPH)
    if graph is None:
        raise MalformedFile("there is no graph in it")
    return GraphFile(
        manifest=_metadata(model, metadata_key),
        # One graph holds every program: which outputs are asked for decides what is run.
        programs={"": Ports(_ports(graph, _GRAPH_INPUTS), _ports(graph, _GRAPH_OUTPUTS))},
        strange=tuple(dict.fromkeys([*_strange_parts(model), *_strange(graph)])),
    )


def _metadata(model: Message, key: str) -> bytes | None:
    found = [entry for entry in model.messages(_MODEL_METADATA) if entry.text(_KEY) == key]
    if len(found) > 1:
        raise MalformedFile(f"its metadata have {len(found)} entries {key!r}, one is due")
    return (found[0].content(_VALUE) or b"") if found else None


def _ports(graph: Message, number: int) -> dict[str, Port]:
    ports: dict[str, Port] = {}
    for entry in graph.messages(number):
        name = entry.text(_PORT_NAME)
        if name in ports:
            raise MalformedFile(f"two inputs or two outputs are called {name[:80]!r}")
        ports[name] = _port(entry.message(_PORT_TYPE))
    return ports


def _port(kind: Message | None) -> Port:
    tensor = kind.message(_TYPE_TENSOR) if kind is not None else None
    if tensor is None:
        return Port("no tensor", None)
    code = tensor.number(_TENSOR_DTYPE)
    shape = tensor.message(_TENSOR_SHAPE)
    axes = None if shape is None else tuple(axis.number(_AXIS_SIZE) for axis in shape.messages(_SHAPE_AXES))
    return Port(_DTYPES.get(code or 0, f"type {code}"), axes)


def _strange_parts(model: Message) -> Iterator[str]:
    if _MODEL_FUNCTIONS in model:
        yield "it brings functions of its own"
    if _MODEL_TRAINING in model:
        yield "it brings a training graph of ONNX's own kind"
    for opset in model.messages(_MODEL_OPSETS):
        if (domain := opset.text(_OPSET_DOMAIN)) not in STANDARD_DOMAINS:
            yield f"it needs the operators of {domain[:80]!r}, only those of ONNX itself are due"


def _strange(graph: Message) -> Iterator[str]:
    """Yield what is not allowed in a graph and in the graphs inside its nodes."""
    for tensor in _tensors(graph):
        if _TENSOR_EXTERNAL in tensor or tensor.number(_TENSOR_LOCATION) == _EXTERNAL:
            name = tensor.text(_TENSOR_NAME)[:80]
            yield f"tensor {name!r} lies in another file (external data), all are due in this one"
    for node in graph.messages(_GRAPH_NODES):
        operator, name = node.text(_NODE_OPERATOR)[:80], node.text(_NODE_NAME)[:80]
        if operator in WITH_A_GRAPH_INSIDE:
            problem = "which may never end: steps written out are due"
            yield f"node {name!r} is the operator {operator!r}, {problem}"
        if (domain := node.text(_NODE_DOMAIN)) not in STANDARD_DOMAINS:
            yield f"node {name!r} is the operator {operator!r} of {domain[:80]!r}, which is not ONNX's own"
        for inner in _parts(node.messages(_NODE_ATTRIBUTES), _ATTRIBUTE_GRAPHS):
            yield from _strange(inner)


def _tensors(graph: Message) -> Iterator[Message]:
    attributes = [part for node in graph.messages(_GRAPH_NODES) for part in node.messages(_NODE_ATTRIBUTES)]
    sparse = [*graph.messages(_GRAPH_SPARSE), *_parts(attributes, _ATTRIBUTE_SPARSE)]
    yield from graph.messages(_GRAPH_INITIALIZERS)
    yield from _parts(attributes, _ATTRIBUTE_TENSORS)
    yield from _parts(sparse, _SPARSE_PARTS)


def _parts(messages: list[Message], numbers: tuple[int, ...]) -> Iterator[Message]:
    for message in messages:
        for number in numbers:
            yield from message.messages(number)
