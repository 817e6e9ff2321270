"""What the fleet's CA issues: names, purposes, files and their modes."""

from __future__ import annotations

import datetime as dt
import ipaddress
import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from trellis.errors import ConfigError, InvalidInput, PayloadError
from trellis.keys import principals
from trellis.keys.authority import create_authority, issue
from trellis.keys.identity import Identity, common_name_of
from trellis.keys.principals import BROKER, OPERATOR, SERVER, Principal, device, gateway

ALL = (SERVER, BROKER, gateway("eu-1"), device("eu-1", "cam-7"))


@pytest.fixture
def open_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def certificate(folder: Path, name: str = "tls.crt") -> x509.Certificate:
    return x509.load_pem_x509_certificate((folder / name).read_bytes())


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_every_identity_is_a_folder_that_loads_as_it_is(root: Path) -> None:
    folders = [root / "operator", *(issue(root, principal) for principal in ALL)]
    assert [str(folder.relative_to(root)) for folder in folders] == [
        "operator", "server", "broker", "gateways/eu-1", "devices/eu-1/cam-7",
    ]  # fmt: skip
    names = [Identity.load(folder).common_name for folder in folders]
    assert names == ["operator", "central/server", "broker", "eu-1/gateway", "eu-1/devices/cam-7"]
    for folder in folders:
        held = {path.name for path in folder.iterdir()} - {"signing.key"}
        assert held == {"ca.crt", "tls.crt", "tls.key", "operator.pub"}
    assert (root / "operator" / "signing.key").exists()
    assert not [path for path in root.rglob("*") if path.name.startswith(".")]


@pytest.mark.usefixtures("open_umask")
def test_private_files_are_0600_in_0700_folders_whatever_the_umask(tmp_path: Path) -> None:
    root = tmp_path / "deep" / "keys"
    create_authority(root)
    for principal in ALL:
        issue(root, principal)
    assert {mode(path) for path in root.rglob("*.key")} == {0o600}
    assert {mode(path) for path in [root, *root.rglob("*")] if path.is_dir()} == {0o700}


@pytest.mark.usefixtures("open_umask")
def test_a_private_file_is_private_before_it_holds_anything(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, tuple[int, int]] = {}
    fdopen = os.fdopen

    def watch(descriptor: int, *arguments: str) -> object:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        seen[path.name] = (mode(path), mode(path.parent))
        return fdopen(descriptor, *arguments)

    monkeypatch.setattr(os, "fdopen", watch)
    issue(root, SERVER)
    assert seen[".tls.key.partial"] == (0o600, 0o700)


def test_ca_may_sign_certificates_and_nothing_else(root: Path) -> None:
    ca = certificate(root / "ca", "ca.crt")
    basic = ca.extensions.get_extension_for_class(x509.BasicConstraints)
    usage = ca.extensions.get_extension_for_class(x509.KeyUsage)
    assert basic.critical
    assert basic.value.ca
    assert basic.value.path_length == 0
    assert usage.critical
    assert usage.value.key_cert_sign
    assert not usage.value.digital_signature
    assert ca.not_valid_after_utc - dt.datetime.now(dt.UTC) > dt.timedelta(days=3649)


@pytest.mark.parametrize(
    ("principal", "purposes"),
    [
        (SERVER, {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}),
        (gateway("eu-1"), {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}),
        (BROKER, {ExtendedKeyUsageOID.SERVER_AUTH}),
        (device("eu-1", "cam-7"), {ExtendedKeyUsageOID.CLIENT_AUTH}),
    ],
)
def test_leafs_are_good_for_their_role_only(
    root: Path, principal: Principal, purposes: set[x509.ObjectIdentifier]
) -> None:
    leaf = certificate(issue(root, principal))
    ca = certificate(root / "ca", "ca.crt")
    assert set(leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == purposes
    assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert not leaf.extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
    authority = leaf.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
    subject = ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    assert authority.key_identifier == subject.digest


def test_who_is_connected_to_names_its_hosts(root: Path) -> None:
    leaf = certificate(issue(root, SERVER, ["10.0.0.5", "fl.example.org", "fd00::7", "127.0.0.1"]))
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["localhost", "fl.example.org"]
    assert names.get_values_for_type(x509.IPAddress) == [
        ipaddress.ip_address(address) for address in ("127.0.0.1", "::1", "10.0.0.5", "fd00::7")
    ]


def test_a_device_names_no_host_that_it_could_pass_for(root: Path) -> None:
    leaf = certificate(issue(root, device("eu-1", "cam-7"), ["10.0.0.5"]))
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [name.value for name in names] == ["urn:trellis:eu-1/devices/cam-7"]


@pytest.mark.parametrize("host", ["", "10.0.0.5:8000", "10.0.0.256", "a b", "https://x", "ex..org", "ü.de"])
def test_a_host_that_is_none_is_refused_before_anything_is_written(root: Path, host: str) -> None:
    with pytest.raises(ConfigError, match="neither a DNS name nor an IP address"):
        issue(root, SERVER, [host])
    assert not (root / "server").exists()


def test_days_set_the_end_of_a_certificate_and_never_beyond_the_ca(root: Path) -> None:
    ca = certificate(root / "ca", "ca.crt")
    ten = certificate(issue(root, SERVER, days=10)).not_valid_after_utc - dt.datetime.now(dt.UTC)
    assert dt.timedelta(days=9, hours=23) < ten <= dt.timedelta(days=10)
    assert certificate(issue(root, BROKER, days=3650)).not_valid_after_utc <= ca.not_valid_after_utc
    for days in (0, -1, 3651):
        with pytest.raises(ConfigError, match="--days"):
            issue(root, gateway("eu-1"), days=days)


def test_nothing_is_ever_overwritten(root: Path) -> None:
    issue(root, SERVER)
    before = {path: path.read_bytes() for path in root.rglob("*.key")}
    with pytest.raises(ConfigError, match="never overwritten"):
        create_authority(root)
    with pytest.raises(
        ConfigError, match=r"never overwritten.*trellis keys renew central/server.*move the folder away"
    ):
        issue(root, SERVER)
    with pytest.raises(ConfigError, match="never overwritten"):
        issue(root, OPERATOR)
    assert {path: path.read_bytes() for path in root.rglob("*.key")} == before


def test_two_at_once_leave_one_whole_identity(root: Path) -> None:
    start = threading.Barrier(4)
    refused: list[ConfigError] = []

    def add() -> None:
        start.wait(30)
        try:
            issue(root, device("eu-1", "cam-7"))
        except ConfigError as error:
            refused.append(error)

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(refused) == 3
    assert Identity.load(root / "devices" / "eu-1" / "cam-7").common_name == "eu-1/devices/cam-7"
    assert [path.name for path in (root / "devices" / "eu-1").iterdir()] == ["cam-7"]


def test_a_failed_write_leaves_nothing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device", str(target))

    monkeypatch.setattr(Path, "rename", full)
    with pytest.raises(ConfigError, match=r"No space left on device$"):
        issue(root, SERVER)
    assert sorted(path.name for path in root.iterdir()) == ["ca", "operator"]


def test_what_stands_in_the_way_is_to_be_moved_away(root: Path) -> None:
    (root / "server").mkdir()
    (root / "server" / "notes").touch()
    with pytest.raises(ConfigError, match=r"never overwritten, so move what is there away"):
        issue(root, SERVER)


def test_without_a_ca_the_error_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="trellis keys init"):
        issue(tmp_path, SERVER)


def test_a_ca_whose_key_is_anothers_signs_nothing(root: Path, tmp_path: Path) -> None:
    create_authority(tmp_path / "other")
    (root / "ca" / "ca.key").write_bytes((tmp_path / "other" / "ca" / "ca.key").read_bytes())
    with pytest.raises(ConfigError, match=r"ca\.key is not the key of ca\.crt"):
        issue(root, SERVER)


def test_names_are_topic_prefixes_and_come_back_from_them() -> None:
    for principal in (*ALL, OPERATOR):
        assert principals.named(principal.common_name) == principal
    for name in ("", "eu-1", "central/gateway", "a/b/c/d", "eu-1/devices/+", "eu-1/devices/", "#"):
        with pytest.raises(InvalidInput):
            principals.named(name)


def test_a_name_too_long_for_a_certificate_says_how_long_it_may_be(root: Path) -> None:
    # 64 characters (RFC 5280) less "/devices/" leave 55 for both names.
    longest = device("r" * 15, "d" * 40)
    assert common_name_of(certificate(issue(root, longest))) == longest.common_name
    with pytest.raises(ConfigError, match=r"65 characters, X\.509 allows 64: shorten the device"):
        device("r" * 15, "d" * 41)
    with pytest.raises(PayloadError):
        gateway("central")
