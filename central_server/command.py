"""`trellis server`: the central server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from central_server.settings import ServerSettings, Timing, data_sources
from trellis import descriptor
from trellis.envelope import Envelope, Keyring, sign
from trellis.errors import ConfigError, InvalidInput
from trellis.keys.identity import Identity, find_identity, load_keyring, load_signing_key
from trellis.service import configure_logging, run_service
from trellis.service_options import BaseOption, InsecureOption, KeepHoursOption, LogLevel, LogLevelOption
from trellis.tls import TlsFiles
from trellis.topics import DEFAULT_BASE, Topics

app = typer.Typer(help="Run the central Flower server.")

PRINCIPAL = "central/server"


@app.command("server")
def server(  # noqa: PLR0917 - typer takes options from parameters
    task: Annotated[
        Path | None,
        typer.Option(
            "--task", metavar="FILE", help="Start this task at once: signed, or a descriptor to sign."
        ),
    ] = None,
    keys: Annotated[
        Path, typer.Option("--keys", metavar="DIR", help="The server's keys, or the folder of all keys.")
    ] = Path("keys"),
    broker: Annotated[
        str | None,
        typer.Option(
            "--broker",
            metavar="URL",
            help="MQTT broker; mqtts://127.0.0.1:8883, or mqtt://127.0.0.1:1883 with --insecure.",
        ),
    ] = None,
    host: Annotated[str, typer.Option("--host", metavar="HOST", help="Address to bind.")] = "127.0.0.1",
    front_port: Annotated[
        int, typer.Option("--front-port", min=0, max=65535, help="Port where devices reach Flower.")
    ] = 8000,
    api_port: Annotated[
        int, typer.Option("--api-port", min=0, max=65535, help="Port of the HTTP API.")
    ] = 8080,
    runs: Annotated[
        Path, typer.Option("--runs", metavar="DIR", help="Where each task's folder is kept.")
    ] = Path("runs"),
    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data", metavar="SOURCE", help="Evaluation data: digits, PATH or NAME=PATH; repeatable."
        ),
    ] = None,
    keep_hours: KeepHoursOption = 24.0,
    base: BaseOption = DEFAULT_BASE,
    insecure: InsecureOption = False,
    log_level: LogLevelOption = LogLevel.INFO,
) -> None:
    """Run the central Flower server: its SuperLink, its HTTP API and its tasks.

    \b
    Examples:
      trellis server --insecure
      trellis server --keys keys/server --host 10.0.0.5 --broker mqtts://10.0.0.5:8883
      trellis server --insecure --task task.yaml --data digits
    """
    configure_logging(log_level)
    timing = Timing.keeping(keep_hours)
    keyring, tls = trust(keys, insecure=insecure)
    settings = ServerSettings(
        broker_url=broker_url(broker, insecure=insecure),
        keyring=keyring,
        tls=tls,
        host=host,
        front_port=front_port,
        api_port=api_port,
        runs=runs,
        data=data_sources(data or ()),
        topics=Topics(base),
        task=None if task is None else signed_task(task, keys),
        timing=timing,
    )
    # The service imports Flower and FastAPI: `--help` must not wait for them.
    from central_server.service import serve  # noqa: PLC0415 - as the comment says

    raise typer.Exit(run_service(lambda stop: serve(settings, stop)))


def trust(keys: Path, *, insecure: bool) -> tuple[Keyring, TlsFiles | None]:
    """Return the operators that the server obeys, and its certificate unless `insecure`.

    Raises:
        ConfigError: The keys are not there, not the server's, or not good.
    """
    if insecure:
        try:
            folder = find_identity(keys, "server")
        except ConfigError:
            return load_keyring(keys), None
        return load_keyring(folder), None
    identity = Identity.load(find_identity(keys, "server"))
    identity.require(PRINCIPAL)
    return identity.keyring, identity.tls


def broker_url(url: str | None, *, insecure: bool) -> str:
    """Return the broker's URL, or its default.

    Raises:
        ConfigError: It is not encrypted, and --insecure was not given.
    """
    if url is None:
        return "mqtt://127.0.0.1:1883" if insecure else "mqtts://127.0.0.1:8883"
    if not insecure and not url.startswith("mqtts://"):
        raise ConfigError(
            f"broker {url!r}", "is not encrypted: use mqtts://, or --insecure to drop TLS on loopback"
        )
    return url


def signed_task(path: Path, keys: Path) -> bytes:
    """Return the signed task in `path`; a descriptor is signed with the operator's key below `keys`.

    Raises:
        InvalidInput: The file holds neither, or there is no key to sign it with.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"task file {str(path)!r}", f"cannot be read: {error.strerror}") from None
    if _is_envelope(raw):
        return Envelope.parse(raw).to_bytes()
    unsigned = descriptor.load(path)
    try:
        key = load_signing_key(keys)
    except InvalidInput as error:
        raise ConfigError(
            f"task file {str(path)!r}",
            f"is not signed, and {keys} holds no operator's signing key ({error}): sign it with "
            "`trellis task sign`, or give the folder of all keys as --keys",
        ) from None
    return sign(unsigned.to_json(), key).to_bytes()


def _is_envelope(raw: bytes) -> bool:
    try:
        value: Any = json.loads(raw)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and "payloadType" in value
