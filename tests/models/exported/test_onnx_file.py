"""What is read of an ONNX file: its ports, its manifest, and whatever it wants from elsewhere."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from models.exported.graph_file import GraphFile, MalformedFile, Port
from models.exported.onnx_file import read_onnx

KNOWN = ("float32", "uint8", "int8", "uint16", "int16", "int32", "int64", "bool", "float16", "float64",
         "uint32", "uint64")  # fmt: skip


def model(*inputs: onnx.ValueInfoProto, opsets: tuple[str, ...] = ("",)) -> onnx.ModelProto:
    graph = helper.make_graph([], "g", list(inputs), [])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid(domain, 18) for domain in opsets])


def read(changed: onnx.ModelProto) -> GraphFile:
    return read_onnx(changed.SerializeToString(), metadata_key="trellis")


@pytest.mark.parametrize("dtype", KNOWN)
def test_a_port_has_the_dtype_that_numpy_knows(dtype: str) -> None:
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    found = read(model(helper.make_tensor_value_info("x", kind, [2])))
    assert found.programs[""].inputs == {"x": Port(dtype, (2,))}


def test_a_dtype_that_no_model_of_ours_has_is_told_by_its_number() -> None:
    found = read(model(helper.make_tensor_value_info("x", TensorProto.STRING, [2])))
    assert found.programs[""].inputs["x"].dtype == "type 8"


@pytest.mark.parametrize("shape", [(), (1,), (3, 4), ("batch", 3), (None, 3), None])
def test_a_port_has_the_shape_that_the_file_says(shape: tuple[int | str | None, ...] | None) -> None:
    found = read(model(helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)))
    open_axes = None if shape is None else tuple(size if isinstance(size, int) else None for size in shape)
    assert found.programs[""].inputs["x"] == Port("float32", open_axes)


def test_what_is_no_tensor_is_no_port_of_ours() -> None:
    several = helper.make_tensor_sequence_value_info("x", TensorProto.FLOAT, [2])
    assert read(model(several, onnx.ValueInfoProto(name="y"))).programs[""].inputs == {
        "x": Port("no tensor", None),
        "y": Port("no tensor", None),
    }


def test_every_program_has_the_one_graphs_ports() -> None:
    found = read(model(helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])))
    assert found.ports("train") is found.ports("eval") is found.programs[""]


@pytest.mark.parametrize("side", ["input", "output"])
def test_two_ports_of_one_name_are_refused(side: str) -> None:
    twice = model()
    for _ in range(2):
        getattr(twice.graph, side).append(onnx.ValueInfoProto(name="x" * 90))
    with pytest.raises(MalformedFile, match=f"two inputs or two outputs are called '{'x' * 80}'$"):
        read(twice)


def test_the_manifest_is_the_value_under_our_key() -> None:
    said = model()
    assert read(said).manifest is None
    for key, value in (("other", "1"), ("trellis", "{}"), ("trellis2", "2")):
        said.metadata_props.add(key=key, value=value)
    assert read(said).manifest == b"{}"
    empty = model()
    empty.metadata_props.add(key="trellis")
    assert read(empty).manifest == b""


def _elsewhere() -> onnx.TensorProto:
    tensor = TensorProto(name="s" * 90, dims=[1], data_type=TensorProto.FLOAT)
    tensor.external_data.add(key="location", value="/etc/passwd")
    return tensor


def _sparse(values: onnx.TensorProto, indices: onnx.TensorProto) -> onnx.SparseTensorProto:
    return onnx.SparseTensorProto(values=values, indices=indices, dims=[1])


PLAIN = TensorProto(name="plain", dims=[1], data_type=TensorProto.FLOAT, float_data=[1.0])


def _inside(*tensors: onnx.TensorProto) -> onnx.GraphProto:
    return helper.make_graph([], "inside", [], [], initializer=list(tensors))


PLACES: dict[str, Callable[[onnx.GraphProto, onnx.AttributeProto], None]] = {
    "an initializer": lambda graph, _: graph.initializer.append(_elsewhere()),
    "a sparse one's values": lambda graph, _: graph.sparse_initializer.append(_sparse(_elsewhere(), PLAIN)),
    "a sparse one's indices": lambda graph, _: graph.sparse_initializer.append(_sparse(PLAIN, _elsewhere())),
    "an attribute": lambda _, attribute: attribute.t.CopyFrom(_elsewhere()),
    "an attribute's list": lambda _, attribute: attribute.tensors.extend([PLAIN, _elsewhere()]),
    "a sparse attribute": lambda _, part: part.sparse_tensor.CopyFrom(_sparse(_elsewhere(), PLAIN)),
    "a sparse attribute's list": lambda _, part: part.sparse_tensors.append(_sparse(PLAIN, _elsewhere())),
    "a graph in a node": lambda _, attribute: attribute.g.CopyFrom(_inside(_elsewhere())),
    "one of several": lambda _, attribute: attribute.graphs.extend([_inside(PLAIN), _inside(_elsewhere())]),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_tensor_in_another_file_is_found_wherever_it_stands(place: str) -> None:
    odd = model()
    node = odd.graph.node.add(op_type="Relu")
    PLACES[place](odd.graph, node.attribute.add(name="a"))
    assert read(odd).strange == (
        f"tensor {'s' * 80!r} lies in another file (external data), all are due in this one",
    )


@pytest.mark.parametrize("operator", ["If", "Loop", "Scan", "SequenceMap"])
def test_an_operator_that_runs_a_graph_inside_may_never_end(operator: str) -> None:
    odd = model()
    node = odd.graph.node.add(op_type=operator, name="n")
    inner = helper.make_node(operator, [], [], name="deep")
    node.attribute.add(name="body").g.CopyFrom(helper.make_graph([inner], "body", [], []))
    assert read(odd).strange == tuple(
        f"node {name!r} is the operator {operator!r}, which may never end: steps written out are due"
        for name in ("n", "deep")
    )


def test_what_lies_in_the_file_and_onnx_own_operators_are_nothing_strange() -> None:
    sound = model(opsets=("", "ai.onnx"))
    sound.graph.node.add(op_type="Relu", domain="ai.onnx").attribute.add(name="t").t.CopyFrom(PLAIN)
    sound.graph.initializer.append(PLAIN)
    assert read(sound).strange == ()


def test_what_is_strange_is_told_once_and_in_short() -> None:
    odd = model(opsets=("", "o" * 90))
    for _ in range(2):
        odd.graph.node.add(op_type="p" * 90, name="n" * 90, domain="d" * 90)
    assert read(odd).strange == (
        f"it needs the operators of {'o' * 80!r}, only those of ONNX itself are due",
        f"node {'n' * 80!r} is the operator {'p' * 80!r} of {'d' * 80!r}, which is not ONNX's own",
    )
