"""The certificates that broker, server and gateway show: renewed ones count only once they are taken up."""

from __future__ import annotations

import datetime as dt
import socket
import ssl
from pathlib import Path
from urllib.parse import urlsplit

from cryptography import x509

from trellis.cli.doctor.check import Check, aside, failure, ok, skipped, warning
from trellis.cli.options import operator_tls
from trellis.errors import TrellisError
from trellis.keys.expiry import SOON
from trellis.keys.identity import common_name_of
from trellis.mqtt.settings import DEFAULT_PORTS
from trellis.tls import TlsFiles, client_context

HANDSHAKE_S = 3.5


async def certificate(name: str, url: str | None, keys: Path) -> Check:
    """Look how long the certificate holds that whoever listens at `url` shows."""
    if url is None or not url.startswith(("https://", "mqtts://")):
        return skipped(name, "none was named that speaks TLS")
    try:
        tls = operator_tls(url, keys)
        shown = None if tls is None else await aside(lambda: _shown(url, tls))
    except (TrellisError, OSError, ValueError) as error:
        return skipped(name, f"{url} shows none: {error}")
    if shown is None:
        return skipped(name, f"{url} shows none")
    whose, end, now = common_name_of(shown), shown.not_valid_after_utc, dt.datetime.now(dt.UTC)
    remedy = (
        f"run 'trellis keys renew {whose}' where the CA's key is, copy ca.crt and tls.crt there, and restart "
        "it: it shows what it was started with"
    )
    if end <= now:
        return failure(name, f"that of {whose!r} ended {end:%Y-%m-%d}", remedy)
    held = f"that of {whose!r} holds until {end:%Y-%m-%d}"
    return warning(name, held, remedy) if end < now + SOON else ok(name, held)


def _shown(url: str, tls: TlsFiles) -> x509.Certificate | None:
    parts = urlsplit(url)
    context = client_context(tls)
    # Whether it passes is another check's to say: of one that has ended the end is to be read, too.
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    address = (parts.hostname or "", parts.port or DEFAULT_PORTS.get(parts.scheme, 443))
    with (
        socket.create_connection(address, HANDSHAKE_S) as raw,
        context.wrap_socket(raw, server_hostname=parts.hostname) as connection,
    ):
        found = connection.getpeercert(binary_form=True)
    return x509.load_der_x509_certificate(found) if found else None
