"""What stands in exported files, and in no other way each time."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from ai_edge_litert import schema_py_generated as schema
from exported_models import LONGEST_S, ROOT, training_artefact
from torch import nn

from models.export import export_inference, export_training
from models.export.running import open_file
from models.exported import read_artefact
from models.manifest import Runtime
from models.registry import ModelSpec, find_model

pytestmark = pytest.mark.timeout(LONGEST_S)

PAGE = ROOT / "docs" / "export.md"


@pytest.mark.parametrize("runtime", ["onnx", "tflite"])
def test_the_same_model_gives_the_same_bytes_in_another_process(runtime: Runtime, tmp_path: Path) -> None:
    elsewhere = training_artefact("softmax", runtime)
    path = tmp_path / "again"
    export_training("softmax", shape=(1, 28, 28), classes=10, runtime=runtime, path=path, batch=8)
    assert path.read_bytes() == elsewhere.read_bytes()


def test_an_onnx_file_has_standard_operators_one_batch_axis_and_nothing_of_this_machine() -> None:
    path = training_artefact("convnet", "onnx")
    model = onnx.load(path)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 18)]
    assert {node.domain for node in model.graph.node} == {""}
    axes = {
        value.name: value.type.tensor_type.shape.dim[0].dim_param
        for value in model.graph.input
        if value.name in "xyw"
    }
    assert axes == {"x": "batch", "y": "batch", "w": "batch"}
    assert str(ROOT).encode() not in path.read_bytes()
    assert b"site-packages" not in path.read_bytes()


def test_onnx_evaluates_without_masks_and_takes_any_batch() -> None:
    path = training_artefact("convnet", "onnx")
    session = onnxruntime.InferenceSession(path)
    names = read_artefact(path, runtime="onnx", purpose="training").manifest.programs["eval"]
    module = find_model("convnet").build((1, 28, 28), 10).eval()
    weights = {f"tensor:{name}": tensor.numpy() for name, tensor in module.state_dict().items()}
    for samples in (1, 50):
        x = np.random.default_rng(samples).standard_normal((samples, 1, 28, 28), dtype=np.float32)
        counts = {"y": np.zeros(samples, np.int64), "w": np.ones(samples, np.float32)}
        fed = {names.inputs[role]: value for role, value in {**weights, **counts, "x": x}.items()}
        (logits,) = session.run([names.outputs["logits"]], fed)
        np.testing.assert_allclose(logits, module(torch.from_numpy(x)).detach().numpy(), atol=1e-5)


def test_samples_without_weight_count_for_nothing() -> None:
    path = training_artefact("softmax", "tflite")
    run = open_file(path, read_artefact(path, runtime="tflite", purpose="training").manifest)
    inputs = {
        "tensor:fc.weight": np.zeros((10, 784), np.float32),
        "tensor:fc.bias": np.zeros(10, np.float32),
        "x": np.ones((8, 1, 28, 28), np.float32),
        "y": np.array([0, 0, 0, 1, 1, 1, 1, 1], np.int32),
        "w": np.array([1, 1, 1, 1, 0, 0, 0, 0], np.float32),
    }
    outputs = run("train", inputs)
    # All logits are zero: the loss is ln 10, the first class is told, which three of the four have.
    assert float(outputs["loss"]) == pytest.approx(math.log(10), abs=1e-6)
    assert float(outputs["correct"]) == 3
    # By the bias: softmax 0.1 less the share of the class, 3/4 and 1/4.
    np.testing.assert_allclose(outputs["gradient:fc.bias"], [-0.65, -0.15, *[0.1] * 8], atol=1e-6)


def test_a_tflite_file_has_builtin_operators_and_constants_where_floats_may_be_read() -> None:
    content = training_artefact("lenet5", "tflite").read_bytes()
    model = schema.ModelT.InitFromPackedBuf(content)
    assert not [code for code in model.operatorCodes if code.customCode]
    packed = schema.Model.GetRootAs(content)
    for index in range(packed.BuffersLength()):
        data = packed.Buffers(index)
        if data.DataLength():
            start = data._tab.Vector(data._tab.Offset(4))
            assert start % 16 == 0


def test_batch_statistics_are_buffers_and_their_count_is_counted_outside(tmp_path: Path) -> None:
    def build(shape: tuple[int, ...], classes: int) -> nn.Module:
        return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, classes))

    path = tmp_path / "normed.onnx"
    manifest = export_training(
        ModelSpec("normed", "", build), shape=(4,), classes=3, runtime="onnx", path=path
    )
    assert read_artefact(path, runtime="onnx", purpose="training").manifest == manifest
    assert {tensor.name: tensor.kind for tensor in manifest.tensors if tensor.name.startswith("1.")} == {
        "1.weight": "parameter",
        "1.bias": "parameter",
        "1.running_mean": "buffer",
        "1.running_var": "buffer",
        "1.num_batches_tracked": "counter",
    }


@pytest.mark.parametrize(("norm", "due"), [(nn.Identity, 16), (lambda: nn.BatchNorm1d(5), 24)])
def test_tflite_takes_batches_whole_only_where_a_model_keeps_statistics_of_them(
    norm: Callable[[], nn.Module], due: int, tmp_path: Path
) -> None:
    def build(shape: tuple[int, ...], classes: int) -> nn.Module:
        return nn.Sequential(nn.Linear(4, 5, bias=False), norm(), nn.Linear(5, classes))

    model = ModelSpec("normed", "", build)
    manifest = export_training(
        model, shape=(4,), classes=3, runtime="tflite", path=tmp_path / "normed.tflite", batch=24
    )
    assert manifest.batch == due


def test_a_file_is_as_large_as_the_page_says() -> None:
    said = re.search(r"LeNet-5 has\s(\d+) KB as ONNX\sand\s(\d+) KB as TFLite", PAGE.read_text())
    assert said is not None
    runtimes: tuple[Runtime, ...] = ("onnx", "tflite")
    for runtime, told in zip(runtimes, said.groups(), strict=True):
        assert training_artefact("lenet5", runtime).stat().st_size / 1000 == pytest.approx(int(told), abs=1)


@pytest.mark.parametrize("runtime", ["onnx", "tflite"])
@pytest.mark.parametrize(
    ("model", "shape"), [("lenet5", (1, 28, 28)), ("gru", (1, 8, 8)), ("mobile-cnn", (3, 16, 16))]
)
def test_an_inference_file_has_the_trained_weights_inside(
    model: str, shape: tuple[int, ...], runtime: Runtime, tmp_path: Path
) -> None:
    torch.manual_seed(3)
    module = find_model(model).build(shape, 10).eval()
    arrays = {name: tensor.numpy() for name, tensor in module.state_dict().items()}
    path = tmp_path / "trained"
    manifest = export_inference(model, arrays, shape=shape, classes=10, runtime=runtime, path=path, batch=2)
    assert read_artefact(path, runtime=runtime, purpose="inference").manifest == manifest
    x = np.random.default_rng(0).standard_normal((2, *shape), dtype=np.float32)
    logits = open_file(path, manifest)("predict", {"x": x})["logits"]
    np.testing.assert_allclose(logits, module(torch.from_numpy(x)).detach().numpy(), atol=1e-5)
