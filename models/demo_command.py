"""`trellis demo`: a whole federation on this machine. What it does stands in `trellis.cli.demo`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import typer
from pydantic import TypeAdapter, ValidationError

from models.data_option import DataOption
from models.datasets import Split, check, load, parse_source
from trellis.cli.demo import running
from trellis.cli.demo.plan import DemoData, plan_demo
from trellis.cli.demo.runtimes import parse_backends, python_of
from trellis.descriptor_fields import Name
from trellis.errors import DataError, Fault
from trellis.files import writable_file

app = typer.Typer(name="demo")

_NAME: TypeAdapter[str] = TypeAdapter(Name)


@app.command()
def demo(
    *,
    regions: Annotated[
        int, typer.Option("--regions", min=1, max=20, help="How many, each with a gateway.")
    ] = 2,
    devices: Annotated[int, typer.Option("--devices", min=1, max=100, help="How many in all.")] = 4,
    rounds: Annotated[int, typer.Option("--rounds", min=1, max=10_000)] = 10,
    data: DataOption = "digits",
    model: Annotated[
        str | None, typer.Option("--model", help="Default: mlp, and lenet5 for pictures of 28×28.")
    ] = None,
    strategy: Annotated[
        str,
        typer.Option("--strategy", help="fedavg, fedprox, fedadam, krum and others, with their defaults."),
    ] = "fedavg",
    split: Annotated[
        str, typer.Option("--split", help="How devices share the data: iid, classes or dirichlet:ALPHA.")
    ] = "iid",
    tier: Annotated[
        Literal["regional", "central"],
        typer.Option("--tier", help="Where updates are averaged: in each region first, or at the centre."),
    ] = "regional",
    backends: Annotated[
        str | None,
        typer.Option(
            "--backends",
            metavar="LIST",
            help="torch,onnx,tflite or some of them: devices take turns, each in its runtime's environment.",
        ),
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the folder with logs, keys and states.")] = False,
    summary: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the summary there, as JSON.")
    ] = None,
) -> None:
    """See a whole federation work: a broker, a Flower server, gateways and devices, each a real process.

    Each region averages its devices' updates, and the centre those of the regions: two tiers, of the same
    result as one (--tier central). More than 8 devices share one process for each region.

    It makes keys, posts a signed task, shows the rounds as they happen, and loads the trained model afresh to
    measure it on data that no device had. Everything is stopped at its end, and at Ctrl-C.

    \b
    Examples:
      trellis demo
      trellis demo --tier central
      trellis demo --devices 6 --split dirichlet:0.3 --strategy fedprox
      trellis demo --regions 4 --devices 40
      trellis demo --backends torch,onnx,tflite
      trellis demo --data mnist.npz --rounds 3 --json summary.json
    """
    if summary is not None:
        source = parse_source(data).path
        summary = writable_file(summary, option="--json", apart_from=[source] if source else [])
    chosen = parse_backends(backends) if backends is not None else ()
    for backend in chosen:
        python_of(backend)
    plan = plan_demo(
        regions=regions,
        devices=devices,
        rounds=rounds,
        data=describe(data),
        model=model,
        strategy=strategy,
        split=split,
        tier=tier,
        backends=chosen,
    )
    running.run(plan, data=data, keep=keep, summary=summary)


def describe(source: str) -> DemoData:
    """Return what `source` holds, as `--data` of the other commands takes it and as they read it.

    Raises:
        DataError: It cannot be read, or a device or the server could not use it.
        MissingExtra: Images need Pillow.
    """
    what = f"data {source!r}"
    named = parse_source(source)
    try:
        _NAME.validate_python(named.name)
    except ValidationError:
        problem = (
            f"is called {named.name!r}; up to 63 of a-z, 0-9, '_', '.' and '-' are a task's name for data"
        )
        raise DataError(what, [Fault("data.name", problem, "name it: --data NAME=PATH")]) from None
    if named.path is not None:
        named = replace(named, path=named.path.resolve())  # the processes run elsewhere
    splits: tuple[Split, ...] = ("train", "test")
    held = {split: load(str(named), split=split) for split in splits}
    train = held["train"]
    if train.classes < 2:
        raise DataError(what, [Fault("", "holds samples of one class", "give data of two classes or more")])
    for split, part in held.items():
        if not len(part):
            raise DataError(what, [Fault("", f"holds no {split} samples", "give data that have some")])
        check(part, name=named.name, shape=train.shape, classes=train.classes, min_samples=1)
    return DemoData(str(named), named.name, train.shape, train.classes, len(train))
