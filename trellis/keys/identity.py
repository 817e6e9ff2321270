"""Loads a machine's own keys, and says everything that is wrong with them at once."""

from __future__ import annotations

import datetime as dt
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.oid import NameOID

from trellis.envelope import Keyring
from trellis.errors import ConfigError, Fault, InvalidInput
from trellis.keys.files import present, remedy
from trellis.signing_key import SigningKey
from trellis.tls import TlsFiles

_FOR_OTHERS = stat.S_IRWXG | stat.S_IRWXO
_READ = "%Y-%m-%d %H:%M UTC"

T = TypeVar("T")


@dataclass(frozen=True)
class Identity:
    """What one machine is, and whom it trusts.

    Attributes:
        folder: Where its files lie.
        tls: Its CA, certificate and key.
        keyring: The operators whose tasks it obeys.
        common_name: Its name on brokers and servers, such as `eu-1/devices/cam-7`.
        not_before: When its certificate begins, in UTC.
        not_after: When its certificate ends, in UTC.
    """

    folder: Path
    tls: TlsFiles
    keyring: Keyring
    common_name: str
    not_before: dt.datetime
    not_after: dt.datetime

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Return the identity in `folder`, checked.

        Raises:
            ConfigError: A file is missing or no PEM, the private key is open to others or another's, or the
                certificate is another CA's or outside its validity.
        """
        tls = TlsFiles(ca=folder / "ca.crt", cert=folder / "tls.crt", key=folder / "tls.key")
        faults: list[Fault] = []
        ca = _read(tls.ca, x509.load_pem_x509_certificate, faults)
        certificate = _read(tls.cert, x509.load_pem_x509_certificate, faults)
        key = _read(tls.key, _private_key, faults)
        faults += _open_to_others(tls.key)
        keyring = _keyring(folder, faults)
        if certificate is not None:
            faults += _certificate_faults(tls, certificate, ca, key)
        if faults or certificate is None or keyring is None:
            raise ConfigError(f"keys in {folder}", faults)
        return cls(
            folder=folder,
            tls=tls,
            keyring=keyring,
            common_name=common_name_of(certificate),
            not_before=certificate.not_valid_before_utc,
            not_after=certificate.not_valid_after_utc,
        )

    def require(self, common_name: str) -> None:
        """Return if this is the identity of `common_name`.

        Raises:
            ConfigError: It is another's, so that a broker would refuse what this process publishes.
        """
        if self.common_name != common_name:
            raise ConfigError(
                f"keys in {self.folder}",
                f"certificate is for {self.common_name!r}, this {_noun(common_name)} is {common_name!r}",
            )


def find_identity(keys: Path, *role_parts: str) -> Path:
    """Return the folder of an identity: `keys` itself if it holds a certificate, else the one below it.

    Args:
        keys: An identity's own folder, or the folder of all keys.
        role_parts: Where it lies below the latter, such as `"devices", "eu-1", "cam-7"`.

    Raises:
        ConfigError: Neither is there.
    """
    if present(keys / "tls.crt"):
        return keys
    folder = keys.joinpath(*role_parts)
    if present(folder / "tls.crt"):
        return folder
    raise ConfigError(
        f"keys in {keys}",
        f"neither {keys / 'tls.crt'} nor {folder / 'tls.crt'} is there: name the machine's own folder, or "
        f"make it with 'trellis keys {_command(role_parts)}'",
    )


def load_keyring(keys: Path) -> Keyring:
    """Return the operators' keys that `keys`, an identity's folder or the folder of all keys, pins.

    Raises:
        ConfigError: There is no `operator.pub`, or it holds no public key.
    """
    return Keyring.load([_own_or_operators(keys, "operator.pub")])


def load_signing_key(keys: Path) -> SigningKey:
    """Return the operator's signing key from `keys`, the operator's folder or the folder of all keys.

    Raises:
        ConfigError: There is none, it is no Ed25519 key, or others can read it.
    """
    path = _own_or_operators(keys, "signing.key")
    faults: list[Fault] = []
    key = _read(path, lambda pem: SigningKey.from_pem(pem, source=str(path)), faults)
    faults += _open_to_others(path)
    if faults or key is None:
        raise ConfigError("operator's signing key", faults)
    return key


def common_name_of(certificate: x509.Certificate) -> str:
    """Return the one common name of a certificate's subject, `""` if it has none or several."""
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if len(names) == 1 else ""


def _own_or_operators(keys: Path, name: str) -> Path:
    own, operators = keys / name, keys / "operator" / name
    return operators if present(operators) and not present(own) else own


def _read(path: Path, parse: Callable[[bytes], T], faults: list[Fault]) -> T | None:
    try:
        return parse(path.read_bytes())
    except OSError as error:
        faults.append(Fault(str(path), error.strerror or str(error), remedy(error)))
    except InvalidInput as error:
        faults += error.faults
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        faults.append(Fault(str(path), f"cannot be read as PEM: {error}", "copy the identity's folder again"))
    return None


def _private_key(pem: bytes) -> PrivateKeyTypes:
    return load_pem_private_key(pem, password=None)


def _keyring(folder: Path, faults: list[Fault]) -> Keyring | None:
    try:
        return Keyring.load([folder / "operator.pub"])
    except ConfigError as error:
        faults += error.faults
        return None


def _open_to_others(path: Path) -> list[Fault]:
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError:
        return []  # `_read` has said so
    if not mode & _FOR_OTHERS:
        return []
    return [Fault(str(path), f"is open to other users (mode {mode:04o})", f"chmod 600 {path}")]


def _certificate_faults(
    tls: TlsFiles, certificate: x509.Certificate, ca: x509.Certificate | None, key: PrivateKeyTypes | None
) -> list[Fault]:
    faults = []
    where = str(tls.cert)
    now = dt.datetime.now(dt.UTC)
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now < begins:
        faults.append(
            Fault(where, f"is valid from {begins:{_READ}}, and it is {now:{_READ}}", "set the clock")
        )
    if now > ends:
        faults.append(_expired(tls.cert, ends, now, common_name_of(certificate)))
    if ca is not None and now > ca.not_valid_after_utc:
        faults.append(_expired(tls.ca, ca.not_valid_after_utc, now, "ca"))
    if not common_name_of(certificate):
        faults.append(Fault(where, "names nobody: its subject needs one common name", "issue a new one"))
    if key is not None and key.public_key() != certificate.public_key():
        faults.append(Fault(str(tls.key), f"is not the key of {tls.cert.name}", "copy both from one folder"))
    if ca is not None and not issued_by(certificate, ca):
        faults.append(Fault(where, f"was not issued by the CA in {tls.ca.name}", "copy both from one folder"))
    return faults


def _expired(path: Path, ended: dt.datetime, now: dt.datetime, name: str) -> Fault:
    return Fault(
        str(path),
        f"expired {ended:{_READ}}, and it is {now:{_READ}}",
        f"run 'trellis keys renew {name}' where the CA's key is, and copy ca.crt and tls.crt here",
    )


def issued_by(certificate: x509.Certificate, ca: x509.Certificate) -> bool:
    """Return whether the key of `ca` signed `certificate`."""
    try:
        certificate.verify_directly_issued_by(ca)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _noun(common_name: str) -> str:
    match common_name.split("/"):
        case [_, "devices", _]:
            return "device"
        case [_, noun] | [noun]:
            return noun
        case _:
            return "process"


def _command(role_parts: tuple[str, ...]) -> str:
    match role_parts:
        case ("devices", region, name):
            return f"device {name} --region {region}"
        case ("gateways", region):
            return f"gateway {region}"
        case _:
            return "init"
