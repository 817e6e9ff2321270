"""Where a graph's ports have to be what its manifest says, and where they may say less."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
from ai_edge_litert import schema_py_generated as schema
from graph_files import manifest, onnx_model, write_onnx, write_tflite
from onnx import TensorProto, helper

from models.exported import read_artefact
from models.manifest import DropoutMask, Manifest, Program, TensorEntry
from trellis.errors import ArtefactError


def faults(path: Path, model: onnx.ModelProto) -> list[str]:
    try:
        read_artefact(write_onnx(path / "t.onnx", model), runtime="onnx", purpose="training")
    except ArtefactError as error:
        return [f"{fault.field}: {fault.problem}" for fault in error.faults]
    return []


def with_port(name: str, shape: Any, said: Manifest | None = None) -> onnx.ModelProto:
    """Return the tiny model, in whose graph one port has another shape."""
    model = onnx_model(said)
    for port in (*model.graph.input, *model.graph.output):
        if port.name == name:
            port.CopyFrom(helper.make_tensor_value_info(name, port.type.tensor_type.elem_type, shape))
    return model


FITTING: list[tuple[str, Any]] = [
    ("loss", (1,)),
    ("loss", (1, 1)),
    ("loss", ("n",)),
    ("loss", None),
    ("x", ("batch", None)),
    ("x", None),
    ("weight", ("rows", 3)),
]


@pytest.mark.parametrize(("name", "shape"), FITTING)
def test_a_graph_may_leave_sizes_open_and_a_number_be_an_array_of_one(
    name: str, shape: Any, tmp_path: Path
) -> None:
    assert faults(tmp_path, with_port(name, shape)) == []


def test_a_graph_of_any_batch_fits_a_manifest_of_one(tmp_path: Path) -> None:
    assert faults(tmp_path, onnx_model(manifest("onnx", batch=4))) == []


TRAIN_IN, TRAIN_OUT, EVAL_OUT = "programs.train.inputs", "programs.train.outputs", "programs.eval.outputs"


@pytest.mark.parametrize(
    ("name", "shape", "due"),
    [
        ("loss", (2,), f"{TRAIN_OUT}.loss: has shape (2) in the graph, () is due"),
        ("correct", ("n", 2), f"{TRAIN_OUT}.correct: has shape (?, 2) in the graph, () is due"),
        ("x", ("batch", 1), f"{TRAIN_IN}.x: has shape (?, 1) in the graph, (?, 3) is due"),
        ("x", ("batch", 3, 1), f"{TRAIN_IN}.x: has shape (?, 3, 1) in the graph, (?, 3) is due"),
        ("x", ("batch",), f"{TRAIN_IN}.x: has shape (?) in the graph, (?, 3) is due"),
        ("x", (), f"{TRAIN_IN}.x: has shape () in the graph, (?, 3) is due"),
        ("weight", (3, 2), f"{TRAIN_IN}.tensor:fc.weight: has shape (3, 2) in the graph, (2, 3) is due"),
        ("dbias", (3,), f"{TRAIN_OUT}.gradient:fc.bias: has shape (3) in the graph, (2) is due"),
        ("logits", ("b", 3), f"{EVAL_OUT}.logits: has shape (?, 3) in the graph, (?, 2) is due"),
    ],
)
def test_a_port_of_another_shape_is_named_with_both(name: str, shape: Any, due: str, tmp_path: Path) -> None:
    assert due in faults(tmp_path, with_port(name, shape))


def with_mask_and_buffer() -> onnx.ModelProto:
    plain = manifest("onnx")
    train, evaluate = plain.programs["train"], plain.programs["eval"]
    mean = {"tensor:norm.mean": "mean"}
    said = manifest(
        "onnx",
        tensors=[
            *plain.tensors,
            TensorEntry(name="norm.mean", shape=(2,), dtype="float32", kind="buffer"),
            TensorEntry(name="norm.count", shape=(), dtype="int64", kind="counter"),
        ],
        masks=[DropoutMask(name="drop", shape=(5,), keep=0.5)],
        programs={
            "train": Program(
                inputs={**train.inputs, **mean, "mask:drop": "m"},
                outputs={**train.outputs, "buffer:norm.mean": "mean2"},
            ),
            "eval": Program(inputs={**evaluate.inputs, **mean}, outputs=evaluate.outputs),
        },
    )
    model = onnx_model(said)
    model.graph.input.append(helper.make_tensor_value_info("m", TensorProto.FLOAT, ["batch", 5]))
    model.graph.input.append(helper.make_tensor_value_info("mean", TensorProto.FLOAT, [2]))
    model.graph.output.append(helper.make_tensor_value_info("mean2", TensorProto.FLOAT, [2]))
    return model


def test_masks_and_buffers_have_the_shapes_that_the_manifest_says(tmp_path: Path) -> None:
    model = with_mask_and_buffer()
    assert faults(tmp_path, model) == []
    model.graph.input[-2].type.tensor_type.shape.dim[1].dim_value = 4
    model.graph.output[-1].type.tensor_type.shape.dim[0].dim_value = 3
    assert faults(tmp_path, model) == [
        f"{TRAIN_IN}.mask:drop: has shape (?, 4) in the graph, (?, 5) is due",
        f"{TRAIN_OUT}.buffer:norm.mean: has shape (3) in the graph, (2) is due",
    ]


@pytest.mark.parametrize("name", ["w", "loss", "dweight", "logits"])
def test_what_is_computed_is_float32(name: str, tmp_path: Path) -> None:
    model = onnx_model()
    for port in (*model.graph.input, *model.graph.output):
        if port.name == name:
            port.type.tensor_type.elem_type = TensorProto.FLOAT16
    assert any(fault.endswith("is float16 in the graph, float32 is due") for fault in faults(tmp_path, model))


def test_labels_are_int32_for_tflite(tmp_path: Path) -> None:
    def change(model: Any) -> None:
        model.subgraphs[0].tensors[3].type = schema.TensorType.INT64

    path = write_tflite(tmp_path / "t.tflite", change=change)
    with pytest.raises(ArtefactError, match=r"train\.inputs\.y: is int64 in the graph, int32 is due"):
        read_artefact(path, runtime="tflite", purpose="training")


def test_every_program_that_is_missing_is_named(tmp_path: Path) -> None:
    path = write_tflite(tmp_path / "t.tflite", change=lambda model: setattr(model, "signatureDefs", []))
    with pytest.raises(ArtefactError) as caught:
        read_artefact(path, runtime="tflite", purpose="training")
    assert [fault.field for fault in caught.value.faults] == ["programs.train", "programs.eval"]


def test_a_long_name_is_told_in_short(tmp_path: Path) -> None:
    plain = manifest("onnx")
    train = plain.programs["train"]
    long = Program(inputs={**train.inputs, "x": "n" * 90}, outputs=train.outputs)
    said = manifest("onnx", programs={**plain.programs, "train": long})
    assert faults(tmp_path, onnx_model(said)) == [
        f"{TRAIN_IN}.x: is called {'n' * 80!r}, which the graph does not have"
    ]


def test_twenty_faults_are_all_told(tmp_path: Path) -> None:
    model = onnx_model()
    for index in range(20):
        model.graph.node.add(op_type="Exec", name=f"evil{index}", domain="com.evil")
    found = faults(tmp_path, model)
    assert (len(found), "evil19" in found[-1]) == (20, True)


def test_a_file_may_be_as_large_as_the_limit(tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "t.onnx")
    size = path.stat().st_size
    read_artefact(path, runtime="onnx", purpose="training", max_bytes=size)
    with pytest.raises(ArtefactError, match=f"has {size} bytes, at most {size - 1} are due"):
        read_artefact(path, runtime="onnx", purpose="training", max_bytes=size - 1)
