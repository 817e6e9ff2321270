"""`trellis model evaluate` and `trellis model list`."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer

from models.artefacts import ModelCard, load_model
from models.backends import EvalResult, open_backend
from models.data_option import DataOption
from models.datasets import check_for_model, load, scale
from models.registry import find_model, model_names
from trellis.errors import ConfigError, Fault, TrellisError

app = typer.Typer(name="model", help="Evaluate and list models.", no_args_is_help=True)

_Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


@dataclass(frozen=True)
class _Listed:
    """A line of `trellis model list`; `parameters` is None where the model cannot be built here."""

    model: str
    describe: str
    parameters: int | None
    fits: bool
    problem: str


@app.command()
def evaluate(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A model as 'trellis model get' writes it.")],
    data: DataOption,
    as_json: _Json = False,
) -> None:
    """Measure a model file on the test split of a data set.

    Of a data set without a test split, the fifth that training leaves out is used.

    \b
    Examples:
      trellis model evaluate model.safetensors --data digits
      trellis model evaluate model.safetensors --data adult.csv#income
    """
    arrays, metadata = load_model(file)
    card = ModelCard.from_metadata(metadata, where=str(file))
    dataset = load(data, split="test")
    check_for_model(dataset, shape=card.shape, classes=card.classes)
    backend = open_backend("torch", card.model, shape=card.shape, classes=card.classes, seed=card.seed)
    result = backend.evaluate(arrays, scale(dataset, card.normalize))
    typer.echo(_as_json(card, dataset.name, result) if as_json else _as_text(card, dataset.name, result))


@app.command("list")
def list_models(
    shape: Annotated[
        str, typer.Option("--shape", metavar="SIZES", help="The shape of a sample, such as 1,28,28.")
    ] = "1,28,28",
    classes: Annotated[int, typer.Option("--classes", min=2, help="How many classes to tell apart.")] = 10,
    as_json: _Json = False,
) -> None:
    """List the models that a task may name, and whether they fit a data set.

    \b
    Example:
      trellis model list --shape 1,8,8 --classes 10
    """
    sizes = parsed_shape(shape)
    listed = [_listed(name, sizes, classes) for name in model_names()]
    if as_json:
        typer.echo(json.dumps([asdict(model) for model in listed], indent=2))
        return
    typer.echo(f"{'MODEL':<16}{'PARAMETERS':>12}  {'FITS':<6}DESCRIPTION")
    for model in listed:
        count = "-" if model.parameters is None else f"{model.parameters:,}"
        note = f"{model.describe}: {model.problem}" if model.problem else model.describe
        typer.echo(f"{model.model:<16}{count:>12}  {'yes' if model.fits else 'no':<6}{note}")


def _listed(name: str, shape: tuple[int, ...], classes: int) -> _Listed:
    try:
        spec = find_model(name)
    except TrellisError as error:
        return _Listed(name, "cannot be loaded", None, False, str(error))
    if problem := spec.misfit(shape):
        return _Listed(name, spec.describe, None, False, f"wants {problem}")
    if importlib.util.find_spec("torch") is None:
        return _Listed(name, spec.describe, None, True, "")
    try:
        module = spec.build(shape, classes)
    except Exception as error:  # noqa: BLE001  # a stranger's code: the others are listed none the less
        problem = str(error) if isinstance(error, TrellisError) else f"{type(error).__name__}: {error}"
        return _Listed(name, spec.describe, None, False, problem)
    return _Listed(name, spec.describe, sum(part.numel() for part in module.parameters()), True, "")


def parsed_shape(text: str) -> tuple[int, ...]:
    """Return the shape that `--shape` gives as `1,28,28`.

    Raises:
        ConfigError: It is none.
    """
    try:
        sizes = tuple(int(size) for size in text.split(","))
    except ValueError:
        sizes = ()
    if not sizes or min(sizes) < 1:
        problem = f"{text[:80]!r} came, whole numbers above 0 with commas between are due"
        raise ConfigError("options", [Fault("shape", problem, "such as 1,28,28")])
    return sizes


def _as_json(card: ModelCard, data: str, result: EvalResult) -> str:
    return json.dumps(
        {
            "model": card.model,
            "task": card.task,
            "round": card.round,
            "data": data,
            "accuracy": result.accuracy,
            "loss": result.loss,
            "samples": result.samples,
        },
        indent=2,
    )


def _as_text(card: ModelCard, data: str, result: EvalResult) -> str:
    return (
        f"{card.model}, task {card.task}, round {card.round}, on {result.samples:,} test samples of {data}:\n"
        f"accuracy  {result.accuracy:.4f}\n"
        f"loss      {result.loss:.4f}"
    )
