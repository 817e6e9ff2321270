"""What the fleet's CA certifies: who a machine is, what its certificate is good for, and for how long."""

from __future__ import annotations

import datetime as dt
import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from trellis.errors import ConfigError
from trellis.keys.principals import Principal, Role

LEAF_DAYS = 365
CA_DAYS = 3650
LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")

# A Raspberry Pi has no clock of its own: one that is a little behind must not refuse a fresh certificate.
_BACKDATED = dt.timedelta(hours=1)


@dataclass(frozen=True)
class Authority:
    """Who signs certificates: the CA's own certificate, and its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


def ca_certificate(key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    """Return a new certificate of the CA with this key; what an earlier one of that key issued stays good."""
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


def leaf(
    authority: Authority,
    principal: Principal,
    public_key: CertificatePublicKeyTypes,
    hosts: Iterable[str],
    days: int,
) -> x509.Certificate:
    """Return a new certificate of `principal` for `public_key`, which never outlives the CA's own.

    Args:
        authority: Who signs it.
        principal: Whom it names.
        public_key: Whose private half the machine holds.
        hosts: DNS names and IP addresses under which others reach it, beside the machine itself.
        days: How long it holds.

    Raises:
        ConfigError: `days` is no such number, a host is neither name nor address, or the CA has ended.
    """
    now = dt.datetime.now(dt.UTC)
    ca_ends = authority.certificate.not_valid_after_utc
    if ca_ends <= now:
        raise ConfigError(
            "certificate authority",
            f"ended {ca_ends:%Y-%m-%d %H:%M UTC}, and certifies nobody: run 'trellis keys renew ca'",
        )
    ends = min(now + dt.timedelta(days=_days(days)), ca_ends)
    issuer = authority.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return (
        x509.CertificateBuilder()
        .subject_name(_name(principal.common_name))
        .issuer_name(authority.certificate.subject)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(ends)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(_purposes(principal)), critical=False)
        .add_extension(x509.SubjectAlternativeName(_alternative_names(principal, hosts)), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(issuer), critical=False)
        .sign(authority.key, hashes.SHA256())
    )


def hosts_of(certificate: x509.Certificate) -> list[str]:
    """Return the hosts that a certificate names."""
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return [str(name.value) for name in names if isinstance(name, x509.DNSName | x509.IPAddress)]


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


def pem(certificate: x509.Certificate) -> bytes:
    """Return a certificate as PEM."""
    return certificate.public_bytes(Encoding.PEM)
