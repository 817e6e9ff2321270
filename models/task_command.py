"""`trellis task validate`: whether a task is right. Its siblings are in `trellis.cli.task`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from models.registry import find_model, require_fit
from trellis.admission_rules import faults_of_refusal, window_rule
from trellis.cli.options import JsonOption, print_json
from trellis.cli.task import delivery
from trellis.descriptor import TaskDescriptor
from trellis.descriptor_rules import Rule
from trellis.errors import Fault, InvalidInput, Refused
from trellis.tier.strategies import STRATEGY_RULES

app = typer.Typer(
    name="task", help="Validate, sign, post, run, list, show and cancel tasks.", no_args_is_help=True
)

_ELSEWHERE = "mind its spelling, or install here what offers it; the server looks for it where it runs"


@app.callback()
def task() -> None:
    """Validate, sign, post, run, list, show and cancel tasks."""


@app.command()
def validate(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Task descriptor, YAML or JSON.")],
    *,
    as_json: JsonOption = False,
) -> None:
    """Say whether a task is right and holds now, with every fault in it (exit code 2).

    A model that is not known here is a warning: the server may have it. A signed task is taken, too; its
    signature is looked at where it is posted.

    \b
    Example:
      trellis task validate task.yaml
    """
    warnings: list[Fault] = []
    rules = (
        window_rule(datetime.now(UTC)),
        Rule(("model", "data"), _model_check(warnings)),
        *STRATEGY_RULES,
    )
    try:
        found, envelope = delivery.read(file, rules=rules)
    except InvalidInput as error:
        if not as_json:
            _warn(warnings)
            raise
        print_json({"valid": False, "faults": _listed(error.faults), "warnings": _listed(warnings)})
        raise typer.Exit(error.exit_code) from None
    if as_json:
        said = {"valid": True, "faults": [], "warnings": _listed(warnings)}
        print_json(said | {"task": found.task, "revision": found.revision})
        return
    _warn(warnings)
    signed = "" if envelope is None else f", signed with key {envelope.signatures[0].keyid}"
    typer.echo(f"{file}: task {found.task!r}, revision {found.revision}{signed}, is right")


def _model_check(warnings: list[Fault]) -> Callable[[TaskDescriptor], Iterator[Fault]]:
    """Return the check that the model takes the data; one that cannot be looked at here is a warning."""

    def check(descriptor: TaskDescriptor) -> Iterator[Fault]:
        try:
            spec = find_model(descriptor.model.name)
        except (Refused, InvalidInput) as error:
            problems = (one.problem for one in faults_of_refusal(error))
            warnings.extend(Fault("model.name", problem, _ELSEWHERE) for problem in problems)
            return
        try:
            require_fit(spec, descriptor.data.shape)
        except InvalidInput as error:
            yield from error.faults

    return check


def _listed(faults: tuple[Fault, ...] | list[Fault]) -> list[dict[str, str]]:
    return [{"field": one.field, "problem": one.problem, "remedy": one.remedy} for one in faults]


def _warn(warnings: list[Fault]) -> None:
    for warning in warnings:
        typer.echo(f"warning: {warning}", err=True)
