"""The fleet's own certificate authority: made once, then it issues one identity for each machine.

ROOT/ca/         ca.crt, ca.key                     stays with whoever adds machines
ROOT/operator/   … and signing.key                  signs tasks
ROOT/server/ ROOT/broker/ ROOT/gateways/<region>/ ROOT/devices/<region>/<device>/
                 ca.crt, tls.crt, tls.key, operator.pub: copy the folder to its machine as it is
"""

from __future__ import annotations

import datetime as dt
import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from trellis.errors import ConfigError
from trellis.keys.files import write_folder
from trellis.keys.principals import OPERATOR, Principal, Role
from trellis.signing_key import SigningKey

LEAF_DAYS = 365
CA_DAYS = 3650
LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")

# A Raspberry Pi has no clock of its own: one that is a little behind must not refuse a fresh certificate.
_BACKDATED = dt.timedelta(hours=1)


@dataclass(frozen=True)
class _Authority:
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


def create_authority(root: Path, *, days: int = LEAF_DAYS) -> None:
    """Write a new CA, and the operator's certificate and signing key, below `root`.

    Args:
        root: Folder of all keys, created if need be.
        days: How long the operator's certificate holds.

    Raises:
        ConfigError: There are keys already; none is ever overwritten.
    """
    held = [name for name in ("ca", "operator") if (root / name).exists()]
    if held:
        raise ConfigError(
            f"folder {root}",
            f"holds keys already ({', '.join(held)}), and keys are never overwritten: add machines with "
            "'trellis keys gateway' and 'trellis keys device', or choose another folder",
        )
    key = ec.generate_private_key(ec.SECP256R1())
    authority = _Authority(_ca_certificate(key), key)
    signing = SigningKey.generate()
    files = _leaf(authority, OPERATOR, (), days, signing.public_pem())
    write_folder(root / "ca", {"ca.crt": _pem(authority.certificate), "ca.key": _key_pem(key)})
    write_folder(root / OPERATOR.folder, {**files, "signing.key": signing.to_pem()})


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
    if (folder / "tls.key").exists():
        raise ConfigError(
            f"folder {folder}",
            f"holds the keys of {principal.common_name!r} already, and keys are never overwritten: "
            "to issue new ones, move the folder away and run this again",
        )
    authority = _load(root)
    try:
        pinned = (root / OPERATOR.folder / "operator.pub").read_bytes()
    except OSError as error:
        raise ConfigError(f"folder {root}", f"operator/operator.pub: {error.strerror}") from error
    write_folder(folder, _leaf(authority, principal, hosts, days, pinned))
    return folder


def _load(root: Path) -> _Authority:
    try:
        certificate = x509.load_pem_x509_certificate((root / "ca" / "ca.crt").read_bytes())
        key = load_pem_private_key((root / "ca" / "ca.key").read_bytes(), password=None)
    except OSError as error:
        raise ConfigError(
            f"folder {root}",
            f"has no certificate authority (ca/{Path(error.filename).name}: {error.strerror}): make one with "
            f"'trellis keys init {root}'",
        ) from error
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"folder {root / 'ca'}", f"holds no key and certificate in PEM: {error}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        raise ConfigError(f"folder {root / 'ca'}", "ca.key is not the key of ca.crt")
    return _Authority(certificate, key)


def _ca_certificate(key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    public = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    name = _name(f"Trellis CA {public.digest.hex()[:8]}")
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(now + dt.timedelta(days=CA_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(public, critical=False)
        .sign(key, hashes.SHA256())
    )


def _leaf(
    authority: _Authority, principal: Principal, hosts: Iterable[str], days: int, pinned: bytes
) -> dict[str, bytes]:
    key = ec.generate_private_key(ec.SECP256R1())
    now = dt.datetime.now(dt.UTC)
    ends = now + dt.timedelta(days=_days(days))
    issuer = authority.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    certificate = (
        x509.CertificateBuilder()
        .subject_name(_name(principal.common_name))
        .issuer_name(authority.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(min(ends, authority.certificate.not_valid_after_utc))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(_purposes(principal)), critical=False)
        .add_extension(x509.SubjectAlternativeName(_alternative_names(principal, hosts)), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(issuer), critical=False)
        .sign(authority.key, hashes.SHA256())
    )
    return {
        "ca.crt": _pem(authority.certificate),
        "tls.crt": _pem(certificate),
        "tls.key": _key_pem(key),
        "operator.pub": pinned,
    }


def _purposes(principal: Principal) -> list[x509.ObjectIdentifier]:
    client, server = ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH
    if principal.role is Role.BROKER:
        return [server]
    return [server, client] if principal.listens else [client]


def _alternative_names(principal: Principal, hosts: Iterable[str]) -> list[x509.GeneralName]:
    if not principal.listens:
        # No host: nobody may pass for a server with it. A URI keeps the extension, and names its holder.
        return [x509.UniformResourceIdentifier(f"urn:trellis:{principal.common_name}")]
    return [host_name(host) for host in dict.fromkeys((*LOCAL_HOSTS, *hosts))]


def host_name(host: str) -> x509.GeneralName:
    """Return a host as certificates name it.

    Raises:
        ConfigError: It is neither a DNS name nor an IP address.
    """
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    labels = host.split(".")
    plain = host.isascii() and all(label.replace("-", "").isalnum() and len(label) <= 63 for label in labels)
    # A last label of digits alone is a mistyped address, never a name.
    if not plain or len(host) > 253 or labels[-1].isdigit():
        raise ConfigError(f"host {host!r}", "is neither a DNS name nor an IP address; give it without port")
    return x509.DNSName(host)


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _days(days: int) -> int:
    if not 1 <= days <= CA_DAYS:
        raise ConfigError("--days", f"is {days}, due is 1 to {CA_DAYS}")
    return days


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.PEM)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
