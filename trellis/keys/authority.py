"""The fleet's own certificate authority: made once, then it issues one identity for each machine.

ROOT/ca/         ca.crt, ca.key                     stays with whoever adds machines
ROOT/operator/   … and signing.key                  signs tasks
ROOT/server/ ROOT/broker/ ROOT/gateways/<region>/ ROOT/devices/<region>/<device>/
                 ca.crt, tls.crt, tls.key, operator.pub: copy the folder to its machine as it is
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from trellis.errors import ConfigError
from trellis.keys.certificates import LEAF_DAYS, Authority, ca_certificate, leaf, pem
from trellis.keys.files import present, write_folder
from trellis.keys.principals import OPERATOR, Principal
from trellis.signing_key import SigningKey

_FOLDERS = ("operator", "server", "broker", "gateways", "devices")
"""What stands beside the CA: whoever finds some of them without it has lost it."""


def create_authority(root: Path, *, days: int = LEAF_DAYS) -> None:
    """Write a new CA, and the operator's certificate and signing key, below `root`.

    Args:
        root: Folder of all keys, created if need be.
        days: How long the operator's certificate holds.

    Raises:
        ConfigError: There are keys already; none is ever overwritten.
    """
    if present(root / "ca"):
        raise held_already(root)
    held = [name for name in _FOLDERS if present(root / name)]
    if held:
        raise ConfigError(
            f"folder {root}",
            f"holds keys ({', '.join(held)}) without the ca/ that they come from: bring it back, or choose "
            "another folder",
        )
    key = ec.generate_private_key(ec.SECP256R1())
    authority = Authority(ca_certificate(key), key)
    operator = _operator(authority, days)
    write_folder(root / "ca", {"ca.crt": pem(authority.certificate), "ca.key": _key_pem(key)})
    write_folder(root / OPERATOR.folder, operator)


def complete(root: Path, hosts: Mapping[Principal, Iterable[str]], days: int = LEAF_DAYS) -> list[Path]:
    """Write what of a CA, the operator's keys and these identities is not below `root`; return it.

    Args:
        root: Folder of all keys, created if need be.
        hosts: By whose identity it is, the names and addresses under which others reach it.
        days: How long certificates hold.

    Raises:
        ConfigError: There are keys without their CA, or keys that pin an operator's who is not there; or as
            `issue`.
    """
    made = []
    if not present(root / "ca"):
        create_authority(root, days=days)
        made = [root / "ca", root / OPERATOR.folder]
    elif not present(root / OPERATOR.folder):
        orphans = [name for name in _FOLDERS if present(root / name)]
        if orphans:
            raise ConfigError(
                f"folder {root}",
                f"has no operator/, whose key {', '.join(orphans)} pin: bring it back, or choose another "
                "folder",
            )
        write_folder(root / OPERATOR.folder, _operator(load_authority(root), days))
        made = [root / OPERATOR.folder]
    new = [principal for principal in hosts if not present(root / principal.folder / "tls.key")]
    return [*made, *(issue(root, principal, hosts[principal], days) for principal in new)]


def held_already(root: Path) -> ConfigError:
    """Return the refusal to make keys where nothing is missing."""
    return ConfigError(
        f"folder {root}",
        "holds keys already, and keys are never overwritten: add machines with 'trellis keys gateway' and "
        "'trellis keys device', renew certificates with 'trellis keys renew', or choose another folder",
    )


def issue(root: Path, principal: Principal, hosts: Iterable[str] = (), days: int = LEAF_DAYS) -> Path:
    """Write a new identity below `root`, and return its folder.

    Args:
        root: Folder of all keys, as `create_authority` wrote it.
        principal: Whose identity it is.
        hosts: DNS names and IP addresses under which others reach it, beside the machine itself.
        days: How long its certificate holds.

    Raises:
        ConfigError: `root` holds no CA, the identity exists already, or a host is neither name nor address.
    """
    folder = root / principal.folder
    if present(folder / "tls.key"):
        raise ConfigError(
            f"folder {folder}",
            f"holds the keys of {principal.common_name!r} already, and keys are never overwritten: "
            f"'trellis keys renew {principal.common_name}' renews its certificate; for a new key, move the "
            "folder away and run this again",
        )
    authority = load_authority(root)
    try:
        pinned = (root / OPERATOR.folder / "operator.pub").read_bytes()
    except OSError as error:
        raise ConfigError(f"folder {root}", f"operator/operator.pub: {error.strerror}") from error
    write_folder(folder, _identity(authority, principal, hosts, days, pinned))
    return folder


def load_authority(root: Path) -> Authority:
    """Return the CA below `root`.

    Raises:
        ConfigError: It is not there, cannot be read, or its key is another's.
    """
    try:
        certificate = x509.load_pem_x509_certificate((root / "ca" / "ca.crt").read_bytes())
        key = load_pem_private_key((root / "ca" / "ca.key").read_bytes(), password=None)
    except OSError as error:
        remedy = (
            f"give the folder that 'trellis keys init' wrote, or make one with 'trellis keys init {root}'"
        )
        if present(root / "ca"):
            remedy = "bring the file back, and run this as its owner"
        raise ConfigError(
            f"folder {root}",
            f"has no certificate authority (ca/{Path(error.filename).name}: {error.strerror}): {remedy}",
        ) from error
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"folder {root / 'ca'}", f"holds no key and certificate in PEM: {error}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        raise ConfigError(f"folder {root / 'ca'}", "ca.key is not the key of ca.crt")
    return Authority(certificate, key)


def _operator(authority: Authority, days: int) -> dict[str, bytes]:
    signing = SigningKey.generate()
    return {
        **_identity(authority, OPERATOR, (), days, signing.public_pem()),
        "signing.key": signing.to_pem(),
    }


def _identity(
    authority: Authority, principal: Principal, hosts: Iterable[str], days: int, pinned: bytes
) -> dict[str, bytes]:
    key = ec.generate_private_key(ec.SECP256R1())
    return {
        "ca.crt": pem(authority.certificate),
        "tls.crt": pem(leaf(authority, principal, key.public_key(), hosts, days)),
        "tls.key": _key_pem(key),
        "operator.pub": pinned,
    }


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
