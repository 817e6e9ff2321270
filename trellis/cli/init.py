"""`trellis init`: the files to start from."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from trellis import config
from trellis.cli.fleet_keys import make_keys
from trellis.cli.options import JsonOption, print_json
from trellis.errors import ConfigError, Fault, InvalidInput
from trellis.keys.files import present
from trellis.keys.identity import load_keyring, load_signing_key

TASK_FILE = "task.yaml"
REGION = "eu-1"

app = typer.Typer(name="init")

TASK = """\
# A task: what is trained, on which data, by whom and how. Check it with `trellis task validate task.yaml`;
# `trellis task schema` prints all fields.
task: digits                      # its name, and its folder below runs/
revision: 1                       # raise it to run a changed task under the same name once this has ended
regions: [eu-1]                   # whose devices take part; each region has a gateway

server:
  address: "127.0.0.1:8000"       # the central Flower server, as devices reach it
  tls: false                      # on one machine only; true everywhere else

model: {name: mlp}                # `trellis model list` shows the others

data:                             # what a device's own data must be, or it does not take part
  name: digits
  shape: [1, 8, 8]                # of one sample: channels, height, width
  classes: 10
  min_samples: 50

train:
  rounds: 10
  local_epochs: 2                 # passes over a device's data in every round
  batch_size: 16
  learning_rate: 0.05
  momentum: 0.9
  seed: 42                        # the same task on the same devices gives the same model

strategy: {name: fedavg}          # or fedprox, fedadam, krum and others: docs/task.md

participants:
  minimum: 2                      # devices that must have checked in before a round starts
  maximum: 100                    # further ones stand by as replacements
  fraction: 1.0                   # share of those taking part that is selected for a round
  quorum: 0.5                     # share of the selected whose replies close a round at its deadline
  deadline_s: 120

evaluate: {on: [server, devices], every: 1}
"""

SETTINGS = """\
# Settings of every trellis command started in this folder. What is typed comes first, then the environment
# (TRELLIS_API_PORT for --api-port), then the command's section, then [common].

[common]
keys = "keys"                            # written by `trellis init`; tasks are signed even on one machine
broker = "mqtt://127.0.0.1:1883"
insecure = true                          # no TLS, loopback only; for a fleet remove it and use mqtts://, https://

[server]
data = ["digits"]                        # the server's own, to evaluate with

[gateway]
region = "eu-1"
server = "http://127.0.0.1:8080"         # the server's HTTP API

[device]
region = "eu-1"
server = ["127.0.0.1:8000"]              # the Flower servers that a device may connect to, and no others
data = "digits"

[doctor]                                 # what `trellis doctor` looks at, besides this machine and the broker
server = "http://127.0.0.1:8080"
gateway = "http://127.0.0.1:8081"
"""


@app.command()
def init(
    folder: Annotated[
        Path, typer.Argument(metavar="[DIR]", help="Where to write; made if need be.")
    ] = Path(),
    *,
    as_json: JsonOption = False,
) -> None:
    """Write task.yaml, trellis.toml and keys to start from; nothing is overwritten, keys of yours are used.

    \b
    Examples:
      trellis init
      trellis init trial && cd trial
    """
    files = {TASK_FILE: TASK, config.FILE_NAME: SETTINGS}
    keys = folder / "keys"
    held = [name for name in files if (folder / name).exists()]
    if held:
        remedy = "choose another folder, or move it away"
        raise ConfigError(
            f"folder {str(folder)!r}", [Fault(name, "is there already", remedy) for name in held]
        )
    used: list[str] = []
    uses = present(keys)
    if uses:
        _require_usable(keys)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not uses:
            make_keys(keys, [REGION])
        for name, text in files.items():
            with (folder / name).open("x", encoding="utf-8") as file:
                file.write(text)
    except OSError as error:
        raise ConfigError(f"folder {str(folder)!r}", f"cannot be written: {error.strerror}") from error
    made = [str(folder / name) for name in files]
    (used if uses else made).append(str(keys))
    if as_json:
        print_json({"made": made, "used": used})
        return
    typer.echo("\n".join([*(f"made {path}" for path in made), *(f"uses {path}, as it is" for path in used)]))
    typer.echo(_next(folder))


def _require_usable(keys: Path) -> None:
    """Return if `keys` holds an operator's keys: on loopback nothing else is needed."""
    try:
        load_signing_key(keys)
        load_keyring(keys)
    except InvalidInput as error:
        remedy = "complete it with 'trellis keys', choose another folder, or move it away"
        raise ConfigError(
            "folder 'keys'", [Fault(f.field or "keys", f.problem, f.remedy or remedy) for f in error.faults]
        ) from error


def _next(folder: Path) -> str:
    there = [] if folder == Path() else [f"  cd {shlex.quote(str(folder))}"]
    lines = [
        "",
        "next, each in a terminal of its own:",
        *there,
        "  trellis broker",
        "  trellis server",
        "  trellis gateway",
        "  trellis device --name cam-1 --partition 0/2",
        "  trellis device --name cam-2 --partition 1/2",
        "  trellis task run task.yaml",
        "",
        "a task that runs keeps its work. To run a changed one under the same name, wait for its end",
        "or call it off (trellis task cancel digits), and give it a higher revision",
        "than `trellis task list` shows.",
    ]
    return "\n".join(lines)
