"""`trellis predict`."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Annotated

import typer

from models.datasets import load
from models.inference import Predictions, Predictor, open_predictor, predict
from trellis.errors import ConfigError
from trellis.files import write_atomically

app = typer.Typer(name="predict")


@app.command(name="predict")
def run(
    *,
    model: Annotated[
        Path,
        typer.Option(
            "--model", metavar="FILE", help="A trained or exported model: .safetensors, .onnx, .tflite."
        ),
    ],
    data: Annotated[
        str,
        typer.Option(
            "--data",
            metavar="SOURCE",
            help="digits, PATH or NAME=PATH (NPZ, IDX, CSV, folder of images by class) or FILE.csv#COLUMN.",
        ),
    ],
    batch: Annotated[
        int, typer.Option("--batch", min=1, help="Samples a call, unless the file has a number of its own.")
    ] = 1,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Write every prediction there, as CSV."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Run a model file on the test split of a data set: accuracy, loss and time, on one thread.

    The file's own scaling is applied. Of a data set without a test split, the fifth that training leaves out
    is used. Exported files need the extra of their runtime, onnx or tflite; trained ones need torch.

    \b
    Examples:
      trellis predict --model model.safetensors --data digits
      trellis predict --model lenet5-int8.onnx --data mnist.npz -o predictions.csv
    """
    if output is not None and not output.parent.is_dir():
        raise ConfigError(f"--output {str(output)!r}", f"folder {str(output.parent)!r} does not exist")
    predictor = open_predictor(model)
    dataset = load(data, split="test")
    predictions = predict(predictor, dataset, batch=batch)
    if output is not None:
        write_atomically(output, _table(predictions), mode=0o644)
    typer.echo((_as_json if as_json else _as_text)(predictor, dataset.name, predictions))


def _as_json(predictor: Predictor, data: str, predictions: Predictions) -> str:
    return json.dumps(
        {
            "model": predictor.model,
            "format": predictor.format,
            "quantization": predictor.quantization,
            "data": data,
            "samples": len(predictions.labels),
            "accuracy": predictions.accuracy,
            "loss": predictions.loss,
            "ms_per_sample": predictions.sample_ms,
            "batch": predictions.batch,
        },
        indent=2,
    )


def _as_text(predictor: Predictor, data: str, predictions: Predictions) -> str:
    kind = f"{predictor.format}, {predictor.quantization or 'float32'}"
    return (
        f"{predictor.model} ({kind}) on {len(predictions.labels):,} test samples of {data}:\n"
        f"accuracy   {predictions.accuracy:.4f}\n"
        f"loss       {predictions.loss:.4f}\n"
        f"ms/sample  {predictions.sample_ms:.4f}, {predictions.batch} a call, one thread"
    )


def _table(predictions: Predictions) -> bytes:
    """Return a CSV file: a row a sample, in the order of the data set."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["sample", "label", "predicted", "probability"])
    surest = predictions.probabilities.max(axis=1)
    for number, (label, told, sure) in enumerate(
        zip(predictions.labels, predictions.predicted, surest, strict=True)
    ):
        rows.writerow([number, label, told, f"{sure:.6f}"])
    return text.getvalue().encode()
