"""`trellis broker`: an MQTT broker in the foreground, for trials."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from trellis.cli.options import JsonOption, print_json
from trellis.errors import ConfigError, Unavailable
from trellis.keys.expiry import reminding
from trellis.keys.files import present
from trellis.keys.identity import Identity, find_identity
from trellis.mqtt.broker import EmbeddedBroker
from trellis.service import configure_logging, run_service
from trellis.tls import TlsFiles

PLAIN_PORT, TLS_PORT = 1883, 8883

app = typer.Typer(name="broker")


@app.command()
def broker(
    *,
    port: Annotated[
        int | None,
        typer.Option(
            "--port", min=0, max=65535, help="1883, or 8883 with TLS, unless given; 0 takes a free one."
        ),
    ] = None,
    host: Annotated[
        str, typer.Option("--host", help="Address to bind; without TLS loopback only.")
    ] = "127.0.0.1",
    keys: Annotated[
        Path | None,
        typer.Option("--keys", metavar="DIR", help="Speak TLS as the broker of these keys, with their ACL."),
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="No TLS even with --keys; loopback only.")
    ] = False,
    state: Annotated[Path, typer.Option("--state", metavar="DIR", help="Its configuration and log.")] = Path(
        "state/broker"
    ),
    as_json: JsonOption = False,
) -> None:
    """Run an MQTT broker until Ctrl-C: mosquitto if it is installed, else amqtt.

    In production run mosquitto as a service; deploy/ has its configuration.

    \b
    Examples:
      trellis broker
      trellis broker --keys keys --host 10.0.0.5
    """
    configure_logging("WARNING")
    identity = None if keys is None or insecure else Identity.load(find_identity(keys, "broker"))
    acl = None if identity is None else _acl_of(identity)
    tls = None if identity is None else identity.tls
    embedded = EmbeddedBroker(
        host,
        port if port is not None else (TLS_PORT if identity else PLAIN_PORT),
        state_dir=state,
        tls=tls,
        acl=acl,
    )
    raise typer.Exit(run_service(lambda stop: _serve(embedded, stop, as_json, tls)))


def _acl_of(identity: Identity) -> Path:
    acl = identity.folder / "acl"
    if not present(acl):
        # Without it whoever has a certificate could write every topic.
        raise ConfigError(f"file {acl}", "is not there: write it with 'trellis keys acl', and copy it there")
    return acl


async def _serve(embedded: EmbeddedBroker, stop: asyncio.Event, as_json: bool, tls: TlsFiles | None) -> None:
    async with reminding(tls), embedded:
        if as_json:
            print_json({"url": embedded.url, "broker": embedded.kind, "pid": embedded.pid})
        else:
            typer.echo(f"{embedded.kind} listens at {embedded.url} (log: {embedded.log}); Ctrl-C ends it")
        ended = asyncio.ensure_future(embedded.wait())
        stopped = asyncio.ensure_future(stop.wait())
        try:
            await asyncio.wait({ended, stopped}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopped.cancel()
        if ended.done() and not stop.is_set():
            raise Unavailable(f"{embedded.kind} has ended (exit status {ended.result()}): see {embedded.log}")
        ended.cancel()
