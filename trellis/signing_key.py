"""Operators' keys: Ed25519, as PEM, named by a digest of their public half."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from typing import Self

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from trellis.errors import ConfigError

_PEM_PUBLIC = re.compile(rb"-----BEGIN PUBLIC KEY-----.+?-----END PUBLIC KEY-----", re.DOTALL)


def keyid_of(key: Ed25519PublicKey) -> str:
    """Return the name of a public key: the first 16 hex digits of the SHA-256 of its 32 raw bytes."""
    return hashlib.sha256(key.public_bytes(Encoding.Raw, PublicFormat.Raw)).hexdigest()[:16]


@dataclass(frozen=True)
class SigningKey:
    """An operator's private key."""

    private: Ed25519PrivateKey = field(repr=False)

    @classmethod
    def generate(cls) -> Self:
        """Return a new key."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def from_pem(cls, pem: bytes, *, source: str) -> Self:
        """Return the Ed25519 key in `pem`, or raise ConfigError, in which `source` names it."""
        try:
            key = load_pem_private_key(pem, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise ConfigError(source, "holds no unencrypted private key in PEM") from error
        if not isinstance(key, Ed25519PrivateKey):
            raise ConfigError(source, f"holds a {type(key).__name__}, an operator signs with Ed25519")
        return cls(key)

    def to_pem(self) -> bytes:
        """Return the private key as PEM (PKCS #8, not encrypted)."""
        return self.private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    @property
    def public(self) -> Ed25519PublicKey:
        """The key that verifies what this one signed."""
        return self.private.public_key()

    @property
    def keyid(self) -> str:
        """The name of the public key."""
        return keyid_of(self.public)

    def public_pem(self) -> bytes:
        """Return the public key as PEM, the line of an `operator.pub`."""
        return self.public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def public_keys(pem: bytes) -> list[Ed25519PublicKey]:
    """Return the Ed25519 keys in `pem`, at least one, or raise ValueError: it holds anything else."""
    if b"PRIVATE KEY" in pem:
        raise ValueError("holds a private key, and only public keys belong here")
    keys: list[Ed25519PublicKey] = []
    for block in _PEM_PUBLIC.findall(pem):
        try:
            key = load_pem_public_key(block)
        except (ValueError, UnsupportedAlgorithm) as error:
            raise ValueError(f"holds a key that cannot be read: {error}") from error
        if not isinstance(key, Ed25519PublicKey):
            raise ValueError(f"holds a {type(key).__name__}, operators sign with Ed25519")
        keys.append(key)
    if not keys:
        raise ValueError("holds no public key in PEM")
    return keys
