"""What `trellis export` asks the exporters for, and says of what they made; none of them runs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import graph_files
import numpy as np
import pytest
from typer.testing import CliRunner

from models.artefacts import ModelCard, save_model
from models.datasets import Normalize
from models.export import command
from models.manifest import Manifest, Program, Quantization, TensorEntry
from trellis.errors import ConfigError, TrellisError

ONNX, TFLITE = ("--format", "onnx"), ("--format", "tflite")
TRAIN, PREDICT = ("--for", "training"), ("--for", "inference")
SIZES = ("--shape", "1,8,8", "--classes", "10")
SHAPE, SCALING = (1, 8, 8), Normalize(0.3, 0.4)


@dataclass(frozen=True)
class Call:
    """What an exporter was asked for."""

    what: str
    arguments: tuple[Any, ...]
    options: dict[str, Any]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Call]:
    """The exporters' calls, in whose place a file of four bytes is made."""
    noted: list[Call] = []

    def stand_in(what: str) -> Callable[..., Manifest]:
        def make(*arguments: Any, **options: Any) -> Manifest:
            noted.append(Call(what, arguments, options))
            options["path"].write_bytes(b"made")
            return graph_files.manifest(options["runtime"])

        return make

    for what in ("export_training", "export_inference", "write_quantized"):
        monkeypatch.setattr(command, what, stand_in(what))
    monkeypatch.chdir(tmp_path)
    arrays = {"fc.weight": np.ones((10, 64), np.float32), "fc.bias": np.zeros(10, np.float32)}
    save_model(
        Path("run.safetensors"), arrays, ModelCard("softmax", SHAPE, 10, "t", 7, SCALING, seed=5).metadata()
    )
    Path("run").write_bytes(Path("run.safetensors").read_bytes())
    return noted


def run(*arguments: str) -> str:
    result = CliRunner().invoke(command.app, arguments)
    if isinstance(result.exception, TrellisError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.mark.parametrize(("batch", "due"), [((), 32), (("--batch", "5"), 5)])
@pytest.mark.parametrize(("model", "sizes"), [("softmax", SIZES), ("run.safetensors", ()), ("run", ())])
def test_a_training_artefact_is_asked_for_with_its_sizes_and_its_batch(
    calls: list[Call], model: str, sizes: tuple[str, ...], batch: tuple[str, ...], due: int
) -> None:
    run(model, *sizes, *TFLITE, *TRAIN, *batch)
    path = Path(f"{model.removesuffix('.safetensors')}-training.tflite")
    wanted = {"shape": SHAPE, "classes": 10, "runtime": "tflite", "path": path, "batch": due}
    assert calls == [Call("export_training", ("softmax",), wanted)]


@pytest.mark.parametrize(("batch", "due"), [((), 1), (("--batch", "5"), 5)])
def test_a_trained_model_is_asked_for_with_its_weights_scaling_and_batch(
    calls: list[Call], batch: tuple[str, ...], due: int
) -> None:
    run("run.safetensors", *TFLITE, *PREDICT, *batch, "-o", "mine.bin")
    (call,) = calls
    name, arrays = call.arguments
    assert (call.what, name) == ("export_inference", "softmax")
    assert (arrays["fc.weight"].sum(), set(arrays)) == (640, {"fc.weight", "fc.bias"})
    wanted = {"shape": SHAPE, "classes": 10, "normalize": SCALING, "seed": 5, "runtime": "tflite"}
    assert call.options == {**wanted, "path": Path("mine.bin"), "batch": due}


@pytest.mark.parametrize(
    ("method", "calibrate", "due"),
    [
        ("fp16", (), None),
        ("int8-dynamic", (), None),
        ("int8-static", ("--calibrate", "digits"), ("digits", 1437)),
    ],
)
def test_a_quantised_file_is_made_of_a_whole_one_that_is_gone_then(
    calls: list[Call], method: str, calibrate: tuple[str, ...], due: tuple[str, int] | None
) -> None:
    run("run.safetensors", *TFLITE, *PREDICT, "--batch", "5", "--quantize", method, *calibrate)
    whole, few = calls
    assert (whole.what, whole.options["batch"], few.what) == ("export_inference", 5, "write_quantized")
    assert few.arguments == (whole.options["path"], method)
    assert not whole.options["path"].parent.exists()
    found = few.options.pop("calibration")
    assert (found and (found.name, len(found))) == due, "of the training split"
    assert few.options == {"runtime": "tflite", "path": Path("run-inference.tflite")}


@pytest.mark.parametrize(
    ("arguments", "due"),
    [
        (
            ("lenet5", *TRAIN, *SIZES, "--quantize", "fp16"),
            "options: quantize: a training file has no weights, and computes in float32 "
            "(--for inference, or leave it out)",
        ),
        (
            ("run", *PREDICT, "--calibrate", "digits"),
            "options: calibrate: nothing is measured where nothing is quantised "
            "(--quantize int8-static, or leave it out)",
        ),
        (
            ("lenet5", *TRAIN, "--classes", "9"),
            "options: shape: is missing (the shape of a sample, such as 1,28,28)",
        ),
        (
            ("lenet5", *TRAIN, "--shape", "4"),
            "options: classes: is missing (how many classes to tell apart, such as 10)",
        ),
        (
            ("run", *PREDICT, *SIZES),
            "options: 2 faults\n"
            "  - shape: '1,8,8' came, 'run' says it by itself (leave it out)\n"
            "  - classes: 10 came, 'run' says it by itself (leave it out)",
        ),
        (
            ("run", *PREDICT, "-o", "small.TFLite"),
            "options: output: 'small.TFLite' came, --format onnx writes no .tflite file "
            "(such as small.onnx, or another --format)",
        ),
        (
            ("run", *PREDICT, "--batch", "7"),
            "options: batch: 7 came, an ONNX file takes a batch of any size "
            "(leave it out, or --format tflite)",
        ),
    ],
)
def test_options_that_make_no_sense_together_are_refused_before_the_work(
    calls: list[Call], arguments: tuple[str, ...], due: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        run(*arguments, *ONNX)
    assert str(caught.value) == due
    assert calls == []


def test_one_class_is_no_classification_as_a_task_says_too(calls: list[Call]) -> None:
    result = CliRunner().invoke(
        command.app, ["softmax", "--shape", "4", "--classes", "1", *TFLITE, *TRAIN], env={"COLUMNS": "200"}
    )
    assert result.exit_code == 2
    assert "'--classes': 1 is not in the range 2<=x<=1000000" in result.stderr
    assert calls == []


WHOLE = graph_files.manifest("tflite")
STATISTICS = TensorEntry(name="norm.running_mean", shape=(2,), dtype="float32", kind="buffer")
QUANTISED: dict[str, Any] = {
    "purpose": "inference",
    "programs": {"predict": Program(inputs={"x": "x"}, outputs={"logits": "z"})},
    "quantization": Quantization(method="fp16"),
}


@pytest.mark.parametrize(
    ("manifest", "due"),
    [
        (graph_files.manifest("onnx"), "tiny for training, ai.onnx 18, a batch of any size"),
        (WHOLE, "tiny for training, tflite 3, a batch of any size, 4 at once"),
        (
            WHOLE.model_copy(update={"tensors": (*WHOLE.tensors, STATISTICS)}),
            "tiny for training, tflite 3, batches of up to 4",
        ),
        (
            graph_files.manifest("tflite", **QUANTISED),
            "tiny for inference, fp16, tflite 3, batches of 4",
        ),
        (
            graph_files.manifest("onnx", **QUANTISED),
            "tiny for inference, fp16, ai.onnx 18, a batch of any size",
        ),
    ],
)
def test_what_was_made_is_told_in_two_lines(
    calls: list[Call], monkeypatch: pytest.MonkeyPatch, manifest: Manifest, due: str
) -> None:
    made = command.export_training

    def make(*arguments: Any, **options: Any) -> Manifest:
        made(*arguments, **options)
        return manifest

    monkeypatch.setattr(command, "export_training", make)
    digest = hashlib.sha256(b"made").hexdigest()
    assert run("softmax", *SIZES, *ONNX, *TRAIN, "-o", "m") == f"m: {due}\n4 bytes, sha256 {digest}\n"
