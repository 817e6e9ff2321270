"""`trellis device`: runs one device until it is stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trellis.config import DEVICE_SERVER, variable
from trellis.service_options import BaseOption, InsecureOption, LogLevel, LogLevelOption
from trellis.topics import DEFAULT_BASE

app = typer.Typer(name="device", help="Run a device: it takes tasks from MQTT and trains on its own data.")

_KEYS = Path("keys")
_BROKER = "mqtt://127.0.0.1:1883"
_SERVER = "127.0.0.1:8000"


@app.command()
def device(  # noqa: PLR0917 - typer makes an option of every parameter; nobody calls it by position
    name: Annotated[str, typer.Option("--name", metavar="NAME", help="This device's name in its region.")],
    region: Annotated[str, typer.Option("--region", metavar="REGION", help="The region it belongs to.")],
    data: Annotated[
        str,
        typer.Option(
            "--data",
            metavar="SOURCE",
            help="Its own data: digits, PATH, NAME=PATH (NPZ, IDX, CSV, images) or FILE.csv#COLUMN.",
        ),
    ],
    keys: Annotated[
        Path, typer.Option("--keys", metavar="DIR", help="The folder of all keys, or this device's own.")
    ] = _KEYS,
    broker: Annotated[
        str, typer.Option("--broker", metavar="URL", help="The region's MQTT broker.")
    ] = _BROKER,
    server: Annotated[
        list[str] | None,
        typer.Option(
            "--server",
            metavar="HOST:PORT",
            envvar=[DEVICE_SERVER, variable("server")],
            show_envvar=False,
            help="A Flower server that it may connect to; repeatable. "
            f"{DEVICE_SERVER} goes before {variable('server')}.",
        ),
    ] = None,
    partition: Annotated[
        str | None,
        typer.Option("--partition", metavar="I/N", help="For trials: take part I (from 0) of N of the data."),
    ] = None,
    split: Annotated[
        str,
        typer.Option("--split", metavar="SPLIT", help="How parts are cut: iid, classes or dirichlet:ALPHA."),
    ] = "iid",
    split_seed: Annotated[int, typer.Option("--split-seed", help="The same for all parts of one cut.")] = 42,
    backend: Annotated[
        str,
        typer.Option(
            "--backend",
            metavar="RUNTIME",
            help="What trains: torch, onnx, tflite, or auto for the first of these that is installed.",
        ),
    ] = "auto",
    threads: Annotated[int, typer.Option("--threads", help="Processor threads that training may use.")] = 1,
    artefact_mb: Annotated[
        int,
        typer.Option(
            "--artefact-mb",
            metavar="MB",
            min=1,
            help="How large a file it may fetch to train from, where it has no PyTorch.",
        ),
    ] = 256,
    replicas: Annotated[
        int | None,
        typer.Option(
            "--replicas",
            metavar="N",
            min=1,
            help="For load tests: N devices in this process, NAME-1 to NAME-N, that share the data out.",
        ),
    ] = None,
    train_threads: Annotated[
        int | None,
        typer.Option(
            "--train-threads", metavar="N", min=1, help="How many replicas train at a time [processors]."
        ),
    ] = None,
    keepalive: Annotated[
        int,
        typer.Option(
            "--keepalive",
            metavar="SECONDS",
            help="Of silence before it says that it is there; lost after 1.5 times as long.",
        ),
    ] = 20,
    state: Annotated[
        Path | None,
        typer.Option("--state", metavar="DIR", help="Its journal, keys, artefacts [state/REGION/NAME]."),
    ] = None,
    base: BaseOption = DEFAULT_BASE,
    insecure: InsecureOption = False,
    link: Annotated[
        str,
        typer.Option(
            "--link", metavar="LINK", help="Its Flower client: warm, or supernode for Flower's own, slower."
        ),
    ] = "warm",
    trust_server_code: Annotated[
        bool,
        typer.Option(
            "--trust-server-code", help="With --link supernode: run here whatever code the server sends."
        ),
    ] = False,
    log_level: LogLevelOption = LogLevel.INFO,
) -> None:
    """Run a device: it takes tasks from MQTT and trains on its own data.

    \b
    Examples:
      trellis device --name cam-7 --region eu-1 --keys keys --data mnist.npz
          --broker mqtts://10.0.0.5:8883 --server 10.0.0.5:8000
      trellis device --name d0 --region eu-1 --data digits --partition 0/3 --insecure
      trellis device --name d --region eu-1 --data digits --replicas 20 --insecure
    """
    from trellis.flower.deferred import defer_unused  # noqa: PLC0415 - before anything of Flower is loaded

    defer_unused()
    # What follows loads Flower's client and numpy: a second that --help must not take.
    from device_agent.reporting import SPEAKER  # noqa: PLC0415 - as the comment says
    from device_agent.service import Options, main  # noqa: PLC0415 - as the comment says
    from trellis.service import configure_logging, run_service  # noqa: PLC0415 - as above

    options = Options(
        name=name,
        region=region,
        data=data,
        keys=keys,
        broker=broker,
        servers=tuple(server or [_SERVER]),
        partition=partition,
        split=split,
        split_seed=split_seed,
        backend=backend,
        threads=threads,
        artefact_mb=artefact_mb,
        keepalive=keepalive,
        state=state or Path("state", region, *([] if replicas else [name])),
        base=base,
        insecure=insecure,
        link=link,
        trust_server_code=trust_server_code,
        replicas=replicas,
        train_threads=train_threads,
    )
    configure_logging(log_level, whose=(lambda: _prefix(SPEAKER.get())) if replicas else None)
    raise typer.Exit(run_service(lambda stop: main(options, stop)))


def _prefix(speaker: str | None) -> str:
    return f"{speaker.rpartition('/')[2]}: " if speaker else ""
