"""What is read of a TFLite file: its ports, its manifest, and whatever it wants from elsewhere."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ai_edge_litert import schema_py_generated as schema
from graph_files import write_tflite

from models.exported.graph_file import GraphFile, MalformedFile, Port
from models.exported.tflite_file import read_tflite
from models.manifest import METADATA_KEY

Change = Callable[[Any], None]

TYPES = {
    "FLOAT32": "float32",
    "FLOAT16": "float16",
    "INT32": "int32",
    "UINT8": "uint8",
    "INT64": "int64",
    "BOOL": "bool",
    "INT16": "int16",
    "INT8": "int8",
    "FLOAT64": "float64",
    "UINT64": "uint64",
    "UINT32": "uint32",
    "UINT16": "uint16",
    "STRING": "type 5",
}


@pytest.fixture
def read(tmp_path: Path) -> Callable[[Change], GraphFile]:
    def changed(change: Change) -> GraphFile:
        path = write_tflite(tmp_path / "tiny.tflite", change=change)
        return read_tflite(path.read_bytes(), metadata_key=METADATA_KEY)

    return changed


@pytest.mark.parametrize("called", TYPES)
def test_a_port_has_the_dtype_that_numpy_knows(read: Callable[[Change], GraphFile], called: str) -> None:
    kind = getattr(schema.TensorType, called)
    found = read(lambda model: setattr(model.subgraphs[0].tensors[2], "type", kind))
    assert found.programs["train"].inputs["x"].dtype == TYPES[called]


def test_a_port_has_the_shape_that_the_file_says(read: Callable[[Change], GraphFile]) -> None:
    found = read(lambda model: setattr(model.subgraphs[0].tensors[2], "shapeSignature", [-1, 3]))
    assert found.programs["train"].inputs["x"] == Port("float32", (None, 3))
    assert found.programs["train"].inputs["y"] == Port("int32", (4,))
    assert found.programs["train"].outputs["loss"] == Port("float32", ())


def test_a_program_has_the_ports_of_its_signature(read: Callable[[Change], GraphFile]) -> None:
    found = read(lambda _: None)
    assert set(found.programs) == {"train", "eval"}
    assert set(found.programs["eval"].outputs) == {"loss", "correct", "logits"}
    assert (found.ports("eval"), found.ports("predict")) == (found.programs["eval"], None)


def _other_metadata(model: Any) -> None:
    other = schema.MetadataT()
    other.name, other.buffer = "min_runtime_version", 0
    model.metadata = [other, *model.metadata]


def test_the_manifest_is_the_buffer_under_our_key(read: Callable[[Change], GraphFile]) -> None:
    found = read(_other_metadata).manifest
    assert found is not None
    assert found.startswith(b'{"schema":1,"purpose":"training"')


def _double(model: Any) -> None:
    model.metadata = [*model.metadata, *model.metadata]


def _rename_signature(model: Any) -> None:
    for signature in model.signatureDefs:
        signature.signatureKey = "s" * 90


def _rename_ports(side: str) -> Change:
    def change(model: Any) -> None:
        for entry in getattr(model.signatureDefs[0], side)[:2]:
            entry.name = "p" * 90

    return change


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (_double, "its metadata have 2 entries 'trellis', one is due"),
        (_rename_signature, f"two signatures are called '{'s' * 80}'$"),
        (_rename_ports("inputs"), f"two inputs or two outputs are called '{'p' * 80}'$"),
        (_rename_ports("outputs"), f"two inputs or two outputs are called '{'p' * 80}'$"),
    ],
)
def test_what_stands_there_twice_is_refused(
    read: Callable[[Change], GraphFile], change: Change, problem: str
) -> None:
    with pytest.raises(MalformedFile, match=problem):
        read(change)


def _graph(field: str, to: list[int]) -> Change:
    return lambda model: setattr(model.subgraphs[0], field, to)


def _operator(field: str, to: list[int]) -> Change:
    return lambda model: setattr(model.subgraphs[0].operators[0], field, to)


def _port(side: str) -> Change:
    return lambda model: setattr(getattr(model.signatureDefs[0], side)[0], "tensorIndex", 10)


@pytest.mark.parametrize("index", [10, -2])
@pytest.mark.parametrize("end", [_graph, _operator])
@pytest.mark.parametrize("side", ["inputs", "outputs"])
def test_an_end_of_graph_or_operator_is_one_of_the_ten_tensors(
    read: Callable[[Change], GraphFile], end: Callable[[str, list[int]], Change], side: str, index: int
) -> None:
    read(end(side, [9]))
    with pytest.raises(MalformedFile, match=f"tensor {index} is named, there are 10"):
        read(end(side, [9, index]))


@pytest.mark.parametrize("side", ["inputs", "outputs"])
def test_a_port_is_one_of_the_ten_tensors(read: Callable[[Change], GraphFile], side: str) -> None:
    with pytest.raises(MalformedFile, match="tensor 10 is named, there are 10"):
        read(_port(side))


@pytest.mark.parametrize(
    ("early", "late", "name"),
    [
        ("CUSTOM", "ADD", "CUSTOM"),
        ("ADD", "CUSTOM", "CUSTOM"),
        ("DELEGATE", "ADD", "DELEGATE"),
        ("PLACEHOLDER_FOR_GREATER_OP_CODES", "ADD", "PLACEHOLDER"),
        ("PLACEHOLDER_FOR_GREATER_OP_CODES", "STABLEHLO_CUSTOM_CALL", "STABLEHLO_CUSTOM_CALL"),
    ],
)
def test_an_operator_of_others_is_found_by_either_of_its_numbers(
    read: Callable[[Change], GraphFile], early: str, late: str, name: str
) -> None:
    def change(model: Any) -> None:
        code = model.operatorCodes[0]
        code.deprecatedBuiltinCode = getattr(schema.BuiltinOperator, early)
        code.builtinCode = getattr(schema.BuiltinOperator, late)

    assert read(change).strange == (f"it needs the operator {name!r}, which is not built into LiteRT",)


@pytest.mark.parametrize("name", ["CALL", "IF", "WHILE", "CALL_ONCE", "STABLEHLO_WHILE", "STABLEHLO_CASE"])
def test_an_operator_that_runs_another_graph_may_never_end(
    read: Callable[[Change], GraphFile], name: str
) -> None:
    def change(model: Any) -> None:
        model.operatorCodes[0].builtinCode = getattr(schema.BuiltinOperator, name)

    due = f"it needs the operator {name!r}, which may never end: steps written out are due"
    assert read(change).strange == (due,)


def _long_names(model: Any) -> None:
    code, tensor = model.operatorCodes[0], model.subgraphs[0].tensors[3]
    code.builtinCode, code.customCode = schema.BuiltinOperator.CUSTOM, "c" * 90
    tensor.name, tensor.externalBuffer = "t" * 90, 1


def test_what_is_strange_is_told_in_short(read: Callable[[Change], GraphFile]) -> None:
    assert read(_long_names).strange == (
        f"it needs the operator {'c' * 80!r}, which is not built into LiteRT",
        f"tensor {'t' * 80!r} lies in another file, all are due in this one",
    )


def _buffers_beside(model: Any) -> None:
    model.externalBuffers = [schema.ExternalBufferT()]


def _placeholders(model: Any) -> None:
    model.buffers[0].offset = model.subgraphs[0].operators[0].largeCustomOptionsOffset = 1


def test_buffers_of_other_files_are_found_and_a_placeholder_of_an_offset_is_none(
    read: Callable[[Change], GraphFile],
) -> None:
    assert read(_buffers_beside).strange == ("it has buffers in other files, all are due in this one",)
    assert read(_placeholders).strange == ()


MARK = 123456789


def _marked_buffer(model: Any) -> None:
    model.buffers[0].data = list(struct.pack("<I", MARK))


def _marked_shape(model: Any) -> None:
    hidden = schema.TensorT()
    hidden.name, hidden.shape, hidden.type = "hidden", [MARK, 1, 1, 1], schema.TensorType.FLOAT32
    model.subgraphs[0].tensors.append(hidden)


@pytest.mark.parametrize("change", [_marked_buffer, _marked_shape])
def test_a_vector_that_no_port_or_manifest_needs_has_to_be_whole_too(tmp_path: Path, change: Change) -> None:
    whole = write_tflite(tmp_path / "tiny.tflite", change=change).read_bytes()
    read_tflite(whole, metadata_key=METADATA_KEY)
    length = struct.pack("<II", 4, MARK)
    assert whole.count(length) == 1
    broken = whole.replace(length, struct.pack("<II", 2**31, MARK))
    with pytest.raises(MalformedFile, match="ends beyond the end: cut short"):
        read_tflite(broken, metadata_key=METADATA_KEY)
