"""A fresh fleet's keys, and certificates with a validity that `trellis keys` would never issue."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from trellis.keys.authority import create_authority

Reissue = Callable[[Path, dt.datetime, dt.datetime], None]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The folder of all keys, with a CA and an operator."""
    create_authority(tmp_path / "keys")
    return tmp_path / "keys"


@pytest.fixture
def reissue(root: Path) -> Reissue:
    """Gives the identity in a folder the same certificate with another validity."""

    def again(folder: Path, begins: dt.datetime, ends: dt.datetime) -> None:
        old = x509.load_pem_x509_certificate((folder / "tls.crt").read_bytes())
        key = load_pem_private_key((root / "ca" / "ca.key").read_bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        builder = x509.CertificateBuilder(
            old.issuer, old.subject, old.public_key(), x509.random_serial_number(), begins, ends
        )
        for extension in old.extensions:
            builder = builder.add_extension(extension.value, extension.critical)
        (folder / "tls.crt").write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM))

    return again
