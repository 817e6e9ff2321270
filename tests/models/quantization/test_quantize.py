"""Quantised files: smaller, read as data, run by their runtime, and hardly less right than the float one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import trained_files
from ai_edge_litert import schema_py_generated as schema
from exported_models import LONGEST_S
from typer.testing import CliRunner

from models.backends import open_backend
from models.datasets import Dataset, load
from models.export import export_inference
from models.export.command import app
from models.exported import read_artefact
from models.inference import Predictions, open_predictor, predict
from models.manifest import METADATA_KEY, Manifest, QuantizationMethod, Runtime
from models.quantization import quantize
from trellis.errors import ArtefactError, ConfigError, DataError, InvalidInput, MissingExtra, TrellisError

# A converter is slow on a busy machine.
pytestmark = pytest.mark.timeout(LONGEST_S)

BOTH = ("onnx", "tflite")
INT8 = ("int8-dynamic", "int8-static")
METHODS = ("fp16", *INT8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds digits.npz, and one trained model as float.onnx and float.tflite, with a batch of 5."""
    made = tmp_path_factory.mktemp("quantization")
    digits = trained_files.write_digits(made / "digits.npz")
    trained = trained_files.train(made / "model.safetensors", digits)
    for runtime in BOTH:
        trained_files.export(trained, made / f"float.{runtime}", batch=5)
    return made


def quantized(folder: Path, method: QuantizationMethod, runtime: Runtime, path: Path) -> Manifest:
    calibration = load(str(folder / "digits.npz"), split="train") if method == "int8-static" else None
    file = folder / f"float.{runtime}"
    return quantize(file, method, runtime=runtime, path=path, calibration=calibration)


def logits(file: Path, data: Dataset) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return what a model that takes eight samples at once says of all of them."""
    told = open_predictor(file).logits
    return np.concatenate([told(data.x[start : start + 8]) for start in range(0, len(data), 8)])


def answers(file: Path, folder: Path) -> Predictions:
    return predict(open_predictor(file), load(str(folder / "digits.npz"), split="test"))


@pytest.mark.parametrize("runtime", BOTH)
@pytest.mark.parametrize("method", METHODS)
def test_a_quantised_file_is_smaller_and_says_what_was_done(
    method: QuantizationMethod, runtime: Runtime, folder: Path, tmp_path: Path
) -> None:
    file, whole = tmp_path / f"small.{runtime}", folder / f"float.{runtime}"
    said = quantized(folder, method, runtime, file)
    read = read_artefact(file, runtime=runtime, purpose="inference").manifest
    assert read == said
    assert said.quantization is not None
    measured = ("digits", 512) if method == "int8-static" else (None, 0)
    assert (said.quantization.calibration, said.quantization.samples) == measured
    before = read_artefact(whole, runtime=runtime, purpose="inference").manifest
    assert said.model_copy(update={"quantization": None}) == before
    # Half or a quarter of 22,546 parameters, and what a graph of small convolutions takes besides.
    assert file.stat().st_size <= (0.6 if method == "fp16" else 0.45) * whole.stat().st_size
    few, all_bits = answers(file, folder), answers(whole, folder)
    assert few.accuracy >= all_bits.accuracy - 0.01
    # It is another model, and nearly the same one.
    assert 0 < np.abs(few.probabilities - all_bits.probabilities).mean() < 0.02
    assert list(tmp_path.iterdir()) == [file]


def test_a_tflite_model_of_any_size_answers_as_before_over_all_that_it_was_measured_on(
    tmp_path: Path,
) -> None:
    rng = np.random.default_rng(0)
    data = Dataset("blobs", rng.random((64, 1, 28, 28), np.float32), np.arange(64) % 10, classes=10)
    # 199,210 parameters: more than 256 KiB in float16, and 8 bits show what the ranges leave out.
    arrays = open_backend("torch", "mlp", shape=(1, 28, 28), classes=10, seed=0).initial()
    sizes = {"shape": (1, 28, 28), "classes": 10}
    whole = tmp_path / "float.tflite"
    export_inference("mlp", arrays, **sizes, runtime="tflite", path=whole, batch=8)
    due = logits(whole, data)
    for method in METHODS:
        file = tmp_path / f"{method}.tflite"
        calibration = data if method == "int8-static" else None
        quantize(whole, method, runtime="tflite", path=file, calibration=calibration)
        off = np.abs(logits(file, data) - due).max() / due.std()
        assert off < (0.01 if method == "fp16" else 0.06), method


@pytest.mark.parametrize("method", INT8)
def test_onnx_files_hold_whole_numbers_and_only_onnx_own_operators(
    method: QuantizationMethod, folder: Path, tmp_path: Path
) -> None:
    quantized(folder, method, "onnx", tmp_path / "small.onnx")
    model = onnx.load(tmp_path / "small.onnx")
    assert [opset.domain for opset in model.opset_import] == [""]
    assert [entry.key for entry in model.metadata_props] == [METADATA_KEY]
    small = {onnx.TensorProto.INT8, onnx.TensorProto.UINT8}
    weights = [part for part in model.graph.initializer if len(part.dims) > 1]
    assert len(weights) == 5
    assert {part.data_type for part in weights} <= small


def test_tflite_files_have_one_manifest_and_whole_numbers(folder: Path, tmp_path: Path) -> None:
    quantized(folder, "int8-static", "tflite", tmp_path / "small.tflite")
    model = schema.ModelT.InitFromPackedBuf((tmp_path / "small.tflite").read_bytes())
    assert [entry.name.decode() for entry in model.metadata].count(METADATA_KEY) == 1
    text = sum(b'"purpose"' in bytes(part.data) for part in model.buffers if part.data is not None)
    assert text == 1
    types = {tensor.type for tensor in model.subgraphs[0].tensors if len(tensor.shape) > 1}
    assert schema.TensorType.INT8 in types


def test_calibration_draws_the_same_samples_every_time(folder: Path, tmp_path: Path) -> None:
    for name in ("first", "second"):
        quantized(folder, "int8-static", "onnx", tmp_path / f"{name}.onnx")
    assert (tmp_path / "first.onnx").read_bytes() == (tmp_path / "second.onnx").read_bytes()


def test_group_normalisation_stays_float(tmp_path: Path) -> None:
    shape, classes = (3, 32, 32), 10
    arrays = open_backend("torch", "mobile-cnn", shape=shape, classes=classes, seed=0).initial()
    whole, small = tmp_path / "whole.onnx", tmp_path / "small.onnx"
    export_inference("mobile-cnn", arrays, shape=shape, classes=classes, runtime="onnx", path=whole)
    noise = np.random.default_rng(0).random((16, *shape), np.float32)
    data = Dataset("noise", noise, np.zeros(16, np.int64), classes)
    quantize(whole, "int8-static", runtime="onnx", path=small, calibration=data)
    told, due = (predict(open_predictor(file), data).predicted for file in (small, whole))
    assert (told == due).mean() >= 0.9


def test_static_without_calibration_is_refused_with_the_remedy(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        quantize(folder / "float.onnx", "int8-static", runtime="onnx", path=tmp_path / "small.onnx")
    assert str(caught.value) == (
        "options: calibrate: int8-static needs samples, to measure the ranges of what goes through the model "
        "(--calibrate DATA, or int8-dynamic)"
    )


def test_calibration_that_nothing_would_use_is_refused(folder: Path, tmp_path: Path) -> None:
    digits = load(str(folder / "digits.npz"), split="train")
    with pytest.raises(ConfigError, match="calibrate: fp16 measures nothing"):
        quantize(
            folder / "float.onnx", "fp16", runtime="onnx", path=tmp_path / "small.onnx", calibration=digits
        )


def test_calibration_on_another_shape_is_refused(folder: Path, tmp_path: Path) -> None:
    digits = load("digits", split="train")
    with pytest.raises(DataError, match=r"samples have shape \(1, 8, 8\)"):
        quantize(
            folder / "float.onnx",
            "int8-static",
            runtime="onnx",
            path=tmp_path / "small.onnx",
            calibration=digits,
        )
    assert list(tmp_path.iterdir()) == []


def test_a_quantised_file_is_not_quantised_again(folder: Path, tmp_path: Path) -> None:
    quantized(folder, "fp16", "onnx", tmp_path / "half.onnx")
    with pytest.raises(ArtefactError, match=r"is quantised already \(fp16\) \(start from the float32 file\)"):
        quantize(tmp_path / "half.onnx", "int8-dynamic", runtime="onnx", path=tmp_path / "small.onnx")


def test_a_model_that_does_not_answer_in_numbers_is_refused_and_what_was_there_stays(
    folder: Path, tmp_path: Path
) -> None:
    model = onnx.load(folder / "float.onnx")
    bias = next(part for part in model.graph.initializer if list(part.dims) == [10])
    bias.CopyFrom(onnx.numpy_helper.from_array(np.full(10, np.inf, np.float32), bias.name))
    onnx.save(model, tmp_path / "broken.onnx")
    small = tmp_path / "small.onnx"
    small.write_bytes(b"before")
    with pytest.raises(InvalidInput) as caught:
        quantize(tmp_path / "broken.onnx", "fp16", runtime="onnx", path=small)
    assert str(caught.value) == (
        "model 'lenet5' cannot be quantised by fp16 for onnx: the answers of what came of it are not finite "
        "(try another method, or leave it as it is)"
    )
    assert small.read_bytes() == b"before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken.onnx", "small.onnx"]


@pytest.mark.parametrize(("runtime", "package"), [("onnx", "onnxruntime"), ("tflite", "ai_edge_quantizer")])
def test_a_quantiser_that_is_not_installed_is_named(
    runtime: Runtime, package: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == package else object())
    with pytest.raises(MissingExtra) as caught:
        quantized(folder, "fp16", runtime, tmp_path / "small")
    assert str(caught.value) == f"{package} is not installed: pip install 'trellis-fl[export]'"


def exported(folder: Path, out: Path, *more: str) -> str:
    arguments = [str(folder / "model.safetensors"), "--for", "inference", "-o", str(out), *more]
    result = CliRunner().invoke(app, arguments)
    if isinstance(result.exception, TrellisError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_command_line_exports_fewer_bits(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "small.tflite"
    options = ("--format", "tflite", "--quantize", "int8-static", "--calibrate", str(folder / "digits.npz"))
    said = json.loads(exported(folder, out, *options, "--json"))
    assert said["bytes"] == out.stat().st_size
    assert said["manifest"]["quantization"] == {
        "method": "int8-static",
        "calibration": "digits",
        "samples": 512,
    }
    assert answers(out, folder).accuracy >= 0.9
    lines = exported(folder, tmp_path / "small.onnx", "--format", "onnx", "--quantize", "fp16").splitlines()
    assert lines[0].endswith("small.onnx: lenet5 for inference, fp16, ai.onnx 18, a batch of any size")


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--quantize", "int8-static"], "calibrate: int8-static needs samples"),
        (["--quantize", "fp16", "--calibrate", "digits"], "calibrate: fp16 measures nothing"),
        (["--calibrate", "digits"], "calibrate: nothing is measured where nothing is quantised"),
        (["--quantize", "fp16", "--for", "training"], "quantize: a training file has no weights"),
    ],
)
def test_options_that_make_no_sense_together_are_refused_at_once(
    options: list[str], problem: str, folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=problem):
        exported(folder, tmp_path / "small.onnx", "--format", "onnx", *options)
    assert list(tmp_path.iterdir()) == []
