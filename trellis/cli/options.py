"""Options that several commands share, and what they are turned into."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from trellis.foreign_text import json_text
from trellis.http.client import ServiceClient
from trellis.tls import TlsFiles

DEFAULT_SERVER = "http://127.0.0.1:8080"
DEFAULT_GATEWAY = "http://127.0.0.1:8081"
DEFAULT_BROKER = "mqtt://127.0.0.1:1883"
DEFAULT_KEYS = Path("keys")

JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
KeysOption = Annotated[
    Path,
    typer.Option("--keys", metavar="DIR", help="The folder of all keys, or the operator's own folder."),
]
ServerOption = Annotated[
    str,
    typer.Option("--server", metavar="URL", help="The central server's HTTP API (https:// needs --keys)."),
]
BrokerOption = Annotated[
    str, typer.Option("--broker", metavar="URL", help="MQTT broker (mqtts:// needs --keys).")
]


def print_json(value: Any) -> None:
    """Print one JSON document on stdout, for machines."""
    typer.echo(json_text(value, indent=2))


def operator_tls(url: str, keys: Path) -> TlsFiles | None:
    """Return the operator's TLS files if `url` needs them.

    Raises:
        ConfigError: It does, and they are not there.
    """
    if not url.startswith(("https://", "mqtts://")):
        return None
    # Certificates are read only here: most trials run on loopback without.
    from trellis.keys.identity import Identity, find_identity  # noqa: PLC0415 - as the comment says

    return Identity.load(find_identity(keys, "operator")).tls


def server_client(url: str, keys: Path) -> ServiceClient:
    """Return a client of the central server."""
    return ServiceClient(url, tls=operator_tls(url, keys), start_hint="trellis server")


def gateway_client(url: str, keys: Path) -> ServiceClient:
    """Return a client of a gateway."""
    return ServiceClient(url, tls=operator_tls(url, keys), start_hint="trellis gateway")
