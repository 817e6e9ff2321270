"""`trellis predict`."""

from __future__ import annotations

import csv
import io
import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from models.data_option import DataOption
from models.datasets import Split, load, parse_source
from models.inference import Predictions, Predictor, open_predictor, predict
from trellis.files import output_file, writable_file, write_atomically

app = typer.Typer(name="predict")


class _Split(StrEnum):
    TEST = "test"
    TRAIN = "train"
    ALL = "all"


_SPLITS: dict[_Split, Split] = {_Split.TEST: "test", _Split.TRAIN: "train", _Split.ALL: "all"}
_SAMPLES: dict[Split, str] = {"test": "test samples", "train": "training samples", "all": "samples"}


@app.command(name="predict")
def run(
    *,
    model: Annotated[
        Path,
        typer.Option(
            "--model", metavar="FILE", help="A trained or exported model: .safetensors, .onnx, .tflite."
        ),
    ],
    data: DataOption,
    split: Annotated[
        _Split, typer.Option("--split", help="Which of the samples: those to test, those to train, or all.")
    ] = _Split.TEST,
    batch: Annotated[
        int, typer.Option("--batch", min=1, help="Samples a call, unless the file has a number of its own.")
    ] = 1,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Write every prediction there, as CSV."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Run a model file on a data set, by default its test split: accuracy, loss and time, on one thread.

    The file's own scaling is applied. Of a data set without a test split it is the fifth that training leaves
    out. Exported files need the extra of their runtime, onnx or tflite; trained ones need torch.

    \b
    Examples:
      trellis predict --model model.safetensors --data digits
      trellis predict --model lenet5-int8.onnx --data mnist.npz -o predictions.csv
      trellis predict --model model.tflite --data twenty.npz --split all
    """
    if output is not None:
        source = parse_source(data).path
        output = writable_file(output, option="--output", apart_from=[model, *([source] if source else [])])
    predictor = open_predictor(model)
    part = _SPLITS[split]
    dataset = load(data, split=part)
    predictions = predict(predictor, dataset, batch=batch)
    if output is not None:
        with output_file(output):
            write_atomically(output, _table(predictions), mode=0o644)
    typer.echo((_as_json if as_json else _as_text)(predictor, dataset.name, part, predictions))


def _as_json(predictor: Predictor, data: str, split: Split, predictions: Predictions) -> str:
    return json.dumps(
        {
            "model": predictor.model,
            "format": predictor.format,
            "quantization": predictor.quantization,
            "data": data,
            "split": split,
            "samples": len(predictions.labels),
            "accuracy": predictions.accuracy,
            "loss": predictions.loss,
            "ms_per_sample": predictions.sample_ms,
            "batch": predictions.batch,
        },
        indent=2,
    )


def _as_text(predictor: Predictor, data: str, split: Split, predictions: Predictions) -> str:
    kind = f"{predictor.format}, {predictor.quantization or 'float32'}"
    return (
        f"{predictor.model} ({kind}) on {len(predictions.labels):,} {_SAMPLES[split]} of {data}:\n"
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
