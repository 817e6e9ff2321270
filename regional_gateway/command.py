"""`trellis gateway`: runs a region's gateway."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from regional_gateway.settings import GatewaySettings
from regional_gateway.starting import serve
from trellis.service import configure_logging, run_service
from trellis.service_options import BaseOption, InsecureOption, KeepHoursOption, LogLevel, LogLevelOption
from trellis.topics import DEFAULT_BASE

app = typer.Typer(name="gateway", help="Run a region's gateway.")


@app.command()
def gateway(
    *,
    region: Annotated[str, typer.Option("--region", metavar="REGION", help="The region that it serves.")],
    keys: Annotated[
        Path, typer.Option("--keys", metavar="DIR", help="The gateway's own folder, or that of all keys.")
    ] = Path("keys"),
    broker: Annotated[
        str | None,
        typer.Option("--broker", metavar="URL", help="The region's MQTT broker; default on this machine."),
    ] = None,
    parent_broker: Annotated[
        str | None,
        typer.Option("--parent-broker", metavar="URL", help="The server's MQTT broker, if it is another."),
    ] = None,
    server: Annotated[
        str | None,
        typer.Option(
            "--server", metavar="URL", help="The central server's HTTP API; default on this machine."
        ),
    ] = None,
    host: Annotated[
        str, typer.Option("--host", metavar="HOST", help="Address that the HTTP API binds.")
    ] = "127.0.0.1",
    parent: Annotated[
        str | None,
        typer.Option(
            "--parent", metavar="URL", help="The HTTP API of the gateway above, if it is not the server."
        ),
    ] = None,
    front_port: Annotated[
        int | None,
        typer.Option(
            "--front-port", metavar="PORT", help="Port of its Flower front, to average its region's updates."
        ),
    ] = None,
    front_address: Annotated[
        str | None,
        typer.Option(
            "--front-address", metavar="HOST:PORT", help="The front as devices reach it; default from --host."
        ),
    ] = None,
    api_port: Annotated[
        int, typer.Option("--api-port", metavar="PORT", help="Port of the HTTP API, 0 for a free one.")
    ] = 8081,
    state: Annotated[
        Path | None,
        typer.Option("--state", metavar="DIR", help="Folder of its store; default state/gateways/REGION."),
    ] = None,
    keep_hours: KeepHoursOption = 24.0,
    base: BaseOption = DEFAULT_BASE,
    insecure: InsecureOption = False,
    log_level: LogLevelOption = LogLevel.INFO,
) -> None:
    """Run a region's gateway: takes signed tasks, hands them to the region's devices, copies rounds.

    With --front-port it averages its region's updates itself, in tasks that say so.

    \b
    Example:
      trellis gateway --region eu-1 --insecure
      trellis gateway --region eu-1 --keys keys/gateways/eu-1 --broker mqtts://10.0.1.2:8883 \\
        --parent-broker mqtts://10.0.0.5:8883 --server https://10.0.0.5:8080 --host 0.0.0.0
    """
    nearby = "mqtt://127.0.0.1:1883" if insecure else "mqtts://127.0.0.1:8883"
    own_broker = broker or nearby
    settings = GatewaySettings(
        region=region,
        keys=keys,
        broker=own_broker,
        parent_broker=parent_broker or own_broker,
        server=server or ("http://127.0.0.1:8080" if insecure else "https://127.0.0.1:8080"),
        host=host,
        api_port=api_port,
        front_port=front_port,
        front_address=front_address,
        parent=parent,
        state=state or Path("state") / "gateways" / region,
        insecure=insecure,
        keep_hours=keep_hours,
        base=base,
    )
    configure_logging(log_level)
    raise typer.Exit(run_service(lambda stop: serve(settings, stop)))
