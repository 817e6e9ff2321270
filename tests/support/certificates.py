"""Certificates that `trellis keys` would never issue: expired ones, and ones for other hosts."""

from __future__ import annotations

import datetime as dt
import ipaddress
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key


def reissue(folder: Path, ca: Path, begins: dt.datetime, ends: dt.datetime, *, host: str = "") -> None:
    """Give the identity in `folder` the same certificate of the same CA, with another validity or host."""
    old = x509.load_pem_x509_certificate((folder / "tls.crt").read_bytes())
    key = load_pem_private_key((ca / "ca.key").read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    builder = x509.CertificateBuilder(
        old.issuer, old.subject, old.public_key(), x509.random_serial_number(), begins, ends
    )
    for extension in old.extensions:
        value = extension.value
        if host and isinstance(value, x509.SubjectAlternativeName):
            value = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(host))])
        builder = builder.add_extension(value, extension.critical)
    (folder / "tls.crt").write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM))
