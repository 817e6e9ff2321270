"""`trellis export`: a model as ONNX or TFLite."""

from __future__ import annotations

import hashlib
import json
from enum import StrEnum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from models.artefacts import ModelCard, load_model
from models.command import parsed_shape
from models.datasets import load
from models.export import MOST_AT_ONCE, TRAINING_BATCH, export_inference, export_training
from models.manifest import Manifest, Purpose, QuantizationMethod, Runtime
from models.quantization import quantize as write_quantized
from models.quantization import require_calibration
from models.registry import find_model
from trellis.descriptor_fields import MAX_CLASSES
from trellis.errors import ConfigError, Fault
from trellis.files import writable_file

app = typer.Typer(name="export")


class _Format(StrEnum):
    ONNX = "onnx"
    TFLITE = "tflite"


class _Purpose(StrEnum):
    TRAINING = "training"
    INFERENCE = "inference"


class _Quantize(StrEnum):
    FP16 = "fp16"
    INT8_DYNAMIC = "int8-dynamic"
    INT8_STATIC = "int8-static"


_METHODS: dict[_Quantize, QuantizationMethod] = {
    _Quantize.FP16: "fp16",
    _Quantize.INT8_DYNAMIC: "int8-dynamic",
    _Quantize.INT8_STATIC: "int8-static",
}


@app.command()
def export(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="A name of 'trellis model list', or a trained model's file."),
    ],
    *,
    runtime: Annotated[_Format, typer.Option("--format", help="Whose file: ONNX Runtime's or LiteRT's.")],
    purpose: Annotated[_Purpose, typer.Option("--for", help="To train, or to predict with trained weights.")],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE", help="Where it goes, MODEL-PURPOSE.FORMAT if not given."
        ),
    ] = None,
    shape: Annotated[
        str | None, typer.Option("--shape", metavar="SIZES", help="The shape of a sample, such as 1,28,28.")
    ] = None,
    classes: Annotated[
        int | None,
        typer.Option(
            "--classes", min=2, max=MAX_CLASSES, help="How many classes to tell apart, as in a task."
        ),
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(
            "--batch",
            min=1,
            max=65536,
            help=f"TFLite only: samples of a device's batches to train, {TRAINING_BATCH} by default, "
            f"taken in pieces of {MOST_AT_ONCE} unless the model keeps statistics of its batches; "
            "samples a call to predict, 1 by default.",
        ),
    ] = None,
    quantize: Annotated[
        _Quantize | None,
        typer.Option("--quantize", help="Write fewer bits: weights of 16, weights of 8, all of 8."),
    ] = None,
    calibrate: Annotated[
        str | None,
        typer.Option(
            "--calibrate",
            metavar="SOURCE",
            help="Data whose training split int8-static measures, as 'trellis device' takes them.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Export a model as data: one file that ONNX Runtime or LiteRT runs without PyTorch.

    For training the file takes weights and gives gradients; they are held against PyTorch's before it is
    written. For inference it has trained weights inside.

    \b
    Examples:
      trellis export lenet5 --shape 1,28,28 --classes 10 --format onnx --for training -o lenet5.onnx
      trellis export digits.safetensors --format tflite --for inference -o digits.tflite
      trellis export digits.safetensors --format onnx --for inference --quantize int8-dynamic
    """
    wanted: Runtime = "onnx" if runtime is _Format.ONNX else "tflite"
    aim: Purpose = "training" if purpose is _Purpose.TRAINING else "inference"
    file = Path(model)
    is_file = file.suffix == ".safetensors" or file.is_file()
    if not is_file:
        find_model(model)
    path = writable_file(
        output or Path(f"{file.stem if is_file else model}-{aim}.{wanted}"),
        option="--output",
        only_files=True,
    )
    method = None if quantize is None else _METHODS[quantize]
    _require_sense(aim, method, calibrate)
    _refuse_idle_batch(wanted, batch)
    _refuse_anothers_name(wanted, path)
    if is_file:
        _refuse_sizes(shape, classes, file)
        if method is None:
            manifest = _from_file(file, aim, wanted, path, batch)
        else:
            manifest = _quantized(file, wanted, path, batch=batch, method=method, calibrate=calibrate)
    elif aim == "inference":
        problem = f"{model[:80]!r} came, a trained model's file is due: a new model predicts nothing"
        raise ConfigError("options", [Fault("MODEL", problem, "such as runs/TASK/model.safetensors")])
    else:
        sizes, count = _required_sizes(shape, classes)
        manifest = export_training(
            model, shape=sizes, classes=count, runtime=wanted, path=path, batch=batch or TRAINING_BATCH
        )
    _report(path, manifest, as_json=as_json)


def _from_file(file: Path, purpose: Purpose, runtime: Runtime, path: Path, batch: int | None) -> Manifest:
    arrays, metadata = load_model(file)
    card = ModelCard.from_metadata(metadata, where=str(file))
    if purpose == "training":
        return export_training(
            card.model,
            shape=card.shape,
            classes=card.classes,
            runtime=runtime,
            path=path,
            batch=batch or TRAINING_BATCH,
        )
    return export_inference(
        card.model,
        arrays,
        shape=card.shape,
        classes=card.classes,
        normalize=card.normalize,
        seed=card.seed,
        runtime=runtime,
        path=path,
        batch=batch or 1,
    )


def _quantized(
    file: Path,
    runtime: Runtime,
    path: Path,
    *,
    batch: int | None,
    method: QuantizationMethod,
    calibrate: str | None,
) -> Manifest:
    data = None if calibrate is None else load(calibrate, split="train")
    with TemporaryDirectory(prefix="trellis-export-") as folder:
        whole = Path(folder) / f"whole.{runtime}"
        _from_file(file, "inference", runtime, whole, batch)
        return write_quantized(whole, method, runtime=runtime, path=path, calibration=data)


def _require_sense(purpose: Purpose, method: QuantizationMethod | None, calibrate: str | None) -> None:
    if method is not None and purpose == "training":
        problem = "a training file has no weights, and computes in float32"
        raise ConfigError("options", [Fault("quantize", problem, "--for inference, or leave it out")])
    if method is not None:
        require_calibration(method, given=calibrate is not None)
    elif calibrate is not None:
        problem = "nothing is measured where nothing is quantised"
        raise ConfigError("options", [Fault("calibrate", problem, "--quantize int8-static, or leave it out")])


def _refuse_idle_batch(runtime: Runtime, batch: int | None) -> None:
    if runtime == "onnx" and batch is not None:
        problem = f"{batch} came, an ONNX file takes a batch of any size"
        raise ConfigError("options", [Fault("batch", problem, "leave it out, or --format tflite")])


def _refuse_anothers_name(runtime: Runtime, path: Path) -> None:
    """Pass unless the file would have another format's name, by which 'trellis predict' goes."""
    suffix = path.suffix.lower()
    if suffix in {".onnx", ".tflite", ".safetensors"} - {f".{runtime}"}:
        problem = f"{str(path)!r} came, --format {runtime} writes no {suffix} file"
        remedy = f"such as {path.with_suffix(f'.{runtime}').name}, or another --format"
        raise ConfigError("options", [Fault("output", problem, remedy)])


def _required_sizes(shape: str | None, classes: int | None) -> tuple[tuple[int, ...], int]:
    faults = []
    if shape is None:
        faults.append(Fault("shape", "is missing", "the shape of a sample, such as 1,28,28"))
    if classes is None:
        faults.append(Fault("classes", "is missing", "how many classes to tell apart, such as 10"))
    if shape is None or classes is None:
        raise ConfigError("options", faults)
    return parsed_shape(shape), classes


def _refuse_sizes(shape: str | None, classes: int | None, file: Path) -> None:
    given = {"shape": shape, "classes": classes}
    faults = [
        Fault(name, f"{value!r} came, {str(file)!r} says it by itself", "leave it out")
        for name, value in given.items()
        if value is not None
    ]
    if faults:
        raise ConfigError("options", faults)


def _report(path: Path, manifest: Manifest, *, as_json: bool) -> None:
    content = path.read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    if as_json:
        said = {"file": str(path), "bytes": len(content), "sha256": sha256}
        typer.echo(json.dumps({**said, "manifest": json.loads(manifest.to_json())}, indent=2))
        return
    typer.echo(
        f"{path}: {manifest.model} for {manifest.purpose}, {_bits(manifest)}{manifest.opset}, "
        f"{_batch(manifest)}\n"
        f"{len(content)} bytes, sha256 {sha256}"
    )


def _bits(manifest: Manifest) -> str:
    return "" if manifest.quantization is None else f"{manifest.quantization.method}, "


def _batch(manifest: Manifest) -> str:
    """Return which batches a file serves; without statistics of them a device adds up pieces' gradients."""
    if manifest.batch is None:
        return "a batch of any size"
    if manifest.purpose == "inference":
        return f"batches of {manifest.batch}"
    if any(tensor.kind == "buffer" for tensor in manifest.tensors):
        return f"batches of up to {manifest.batch}"
    return f"a batch of any size, {manifest.batch} at once"
