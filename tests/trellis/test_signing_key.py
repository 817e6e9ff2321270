"""Operators' keys: their names, their PEM, and what is none."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from trellis.errors import ConfigError
from trellis.signing_key import SigningKey

# RFC 8032, section 7.1, test 1: the secret key, and the public key that belongs to it.
RFC_SECRET = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
RFC_PUBLIC = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"


def test_keyid_is_the_head_of_the_sha256_of_the_raw_public_key() -> None:
    key = SigningKey(Ed25519PrivateKey.from_private_bytes(RFC_SECRET))
    assert key.public.public_bytes(Encoding.Raw, PublicFormat.Raw).hex() == RFC_PUBLIC
    # printf d75a…511a | xxd -r -p | sha256sum
    assert key.keyid == "21fe31dfa154a261"


def test_signing_key_survives_pem_and_never_shows_itself() -> None:
    key = SigningKey.generate()
    again = SigningKey.from_pem(key.to_pem(), source="signing.key")
    assert again.keyid == key.keyid
    assert "rivate" not in repr(key)


def test_a_signing_key_that_is_none_is_a_config_error() -> None:
    curve = ec.generate_private_key(ec.SECP256R1())
    pem = curve.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    for content in (b"", b"not a key", SigningKey.generate().public_pem(), pem):
        with pytest.raises(ConfigError, match=r"signing\.key"):
            SigningKey.from_pem(content, source="signing.key")
