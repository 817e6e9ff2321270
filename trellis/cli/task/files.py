"""`trellis task schema` and `sign`: a task as a file, on one's own machine. `validate` is in `models`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trellis import descriptor
from trellis.cli.options import DEFAULT_KEYS, JsonOption, KeysOption, print_json
from trellis.cli.task import delivery
from trellis.errors import ConfigError
from trellis.files import output_file, writable_file, write_atomically
from trellis.tier.strategies import STRATEGY_RULES

app = typer.Typer(name="task")

_File = Annotated[Path, typer.Argument(metavar="FILE", help="Task descriptor, YAML or JSON.")]


@app.command()
def schema() -> None:
    """Print the JSON Schema of task descriptors, for editors and machines.

    \b
    Example:
      trellis task schema > task.schema.json
    """
    print_json(descriptor.json_schema())


@app.command()
def sign(
    file: _File,
    *,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="Where the signed task goes.")
    ],
    keys: KeysOption = DEFAULT_KEYS,
    as_json: JsonOption = False,
) -> None:
    """Sign a task, so that it can be posted from a machine without the operator's key.

    \b
    Examples:
      trellis task sign task.yaml -o task.signed.json
      trellis task post task.signed.json --gateway https://10.0.1.5:8081
    """
    output = writable_file(output, option="--output", apart_from=[file])
    unsigned, envelope = delivery.read(file, rules=STRATEGY_RULES)
    if envelope is not None:
        raise ConfigError(f"task file {str(file)!r}", "is signed already: post it as it is")
    task = delivery.signed(unsigned, keys)
    with output_file(output):
        write_atomically(output, task.envelope.to_bytes())
    keyid = task.envelope.signatures[0].keyid
    if as_json:
        print_json({"task": task.descriptor.task, "file": str(output), "keyid": keyid})
    else:
        typer.echo(f"{output}: task {task.descriptor.task!r}, signed with key {keyid}")
