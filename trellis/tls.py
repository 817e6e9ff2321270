"""TLS as every tier uses it: a pinned CA, and a certificate of one's own."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

from trellis.errors import ConfigError, Fault


@dataclass(frozen=True)
class TlsFiles:
    """Where the PEM files lie: the CA to trust, one's own certificate and its private key."""

    ca: Path
    cert: Path
    key: Path


def client_context(files: TlsFiles) -> ssl.SSLContext:
    """Return a context that trusts this CA alone, checks the host name and shows our certificate.

    Raises:
        ConfigError: A file is missing, unreadable or no PEM, or the key is not the certificate's.
    """
    faults = [
        Fault(f"tls.{name}", f"{path} is not a readable file", "make the keys with `trellis keys init`")
        for name, path in (("ca", files.ca), ("cert", files.cert), ("key", files.key))
        if not _readable(path)
    ]
    if faults:
        raise ConfigError("TLS files", faults)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # CERT_REQUIRED and check_hostname are its defaults
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_verify_locations(cafile=files.ca)
    except ssl.SSLError as error:
        raise ConfigError(
            "TLS files", [Fault("tls.ca", f"{files.ca} holds no PEM certificate: {error}")]
        ) from error
    try:
        # An empty password: without one OpenSSL would ask at the terminal for an encrypted key's.
        context.load_cert_chain(certfile=files.cert, keyfile=files.key, password="")
    except ssl.SSLError as error:
        problem = f"{files.cert} and {files.key} are no PEM certificate with its unencrypted key: {error}"
        raise ConfigError("TLS files", [Fault("tls.cert", problem)]) from error
    return context


def _readable(path: Path) -> bool:
    try:
        with path.open("rb"):
            return True
    except OSError:
        return False
