"""Loading a machine's keys: what is wrong is said, all of it, with the file and the remedy."""

from __future__ import annotations

import datetime as dt
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from other_user import folder_for_all, nobody

from trellis.envelope import sign
from trellis.errors import ConfigError
from trellis.keys.authority import complete, create_authority, issue
from trellis.keys.identity import Identity, find_identity, load_keyring, load_signing_key
from trellis.keys.principals import SERVER, device
from trellis.keys.register import entries

NOW = dt.datetime.now(dt.UTC)
DAY = dt.timedelta(days=1)
Reissue = Callable[[Path, dt.datetime, dt.datetime], None]


@pytest.fixture
def folder(root: Path) -> Path:
    return issue(root, device("eu-1", "cam-7"))


def faults(folder: Path) -> list[str]:
    with pytest.raises(ConfigError) as error:
        Identity.load(folder)
    return [str(fault) for fault in error.value.faults]


def test_identity_says_who_it_is_and_whom_it_trusts(root: Path, folder: Path) -> None:
    identity = Identity.load(folder)
    assert identity.common_name == "eu-1/devices/cam-7"
    assert (identity.tls.ca, identity.tls.cert, identity.tls.key) == (
        folder / "ca.crt", folder / "tls.crt", folder / "tls.key",
    )  # fmt: skip
    assert NOW + 364 * DAY < identity.not_after < NOW + 366 * DAY
    key = load_signing_key(root)
    assert identity.keyring.verify(sign("{}", key)) == key.keyid


def test_a_key_that_others_can_read_is_refused_with_its_mode_and_the_remedy(folder: Path) -> None:
    for mode in (0o640, 0o604, 0o644, 0o660):
        (folder / "tls.key").chmod(mode)
        (fault,) = faults(folder)
        assert f"(mode {mode:04o})" in fault
        assert f"chmod 600 {folder / 'tls.key'}" in fault
    (folder / "tls.key").chmod(0o400)
    Identity.load(folder)


def test_a_signing_key_that_others_can_read_is_refused(root: Path) -> None:
    (root / "operator" / "signing.key").chmod(0o644)
    with pytest.raises(ConfigError, match=r"mode 0644.*chmod 600"):
        load_signing_key(root)


def test_an_expired_certificate_says_when(folder: Path, reissue: Reissue) -> None:
    reissue(folder, NOW - 3 * DAY, NOW - DAY)
    (fault,) = faults(folder)
    assert f"expired {NOW - DAY:%Y-%m-%d %H:%M UTC}" in fault
    assert fault.endswith("where the CA's key is, and copy ca.crt and tls.crt here)")


def test_a_certificate_of_the_future_points_at_the_clock(folder: Path, reissue: Reissue) -> None:
    reissue(folder, NOW + DAY, NOW + 2 * DAY)
    (fault,) = faults(folder)
    assert "set the clock" in fault


def test_another_devices_key_is_named(root: Path, folder: Path) -> None:
    shutil.copy(issue(root, device("eu-1", "cam-8")) / "tls.key", folder)
    (fault,) = faults(folder)
    assert fault.startswith(f"{folder / 'tls.key'}: is not the key of tls.crt")


def test_another_fleets_ca_is_named(folder: Path, tmp_path: Path) -> None:
    create_authority(tmp_path / "other")
    shutil.copy(tmp_path / "other" / "ca" / "ca.crt", folder)
    (fault,) = faults(folder)
    assert "was not issued by the CA in ca.crt" in fault


def test_a_ca_of_the_same_name_and_another_key_is_named(root: Path, folder: Path) -> None:
    own = x509.load_pem_x509_certificate((root / "ca" / "ca.crt").read_bytes())
    key = ec.generate_private_key(ec.SECP256R1())
    builder = x509.CertificateBuilder(own.subject, own.subject, key.public_key(), 1, NOW - DAY, NOW + DAY)
    (folder / "ca.crt").write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM))
    (fault,) = faults(folder)
    assert "was not issued by the CA in ca.crt" in fault


def test_all_faults_come_at_once(root: Path, folder: Path, reissue: Reissue) -> None:
    reissue(folder, NOW - 3 * DAY, NOW - DAY)
    shutil.copy(issue(root, device("eu-1", "cam-8")) / "tls.key", folder)
    (folder / "tls.key").chmod(0o644)
    (folder / "operator.pub").write_text("nothing")
    (folder / "ca.crt").unlink()
    text = "\n".join(faults(folder))
    for part in ("ca.crt: No such file", "mode 0644", "no public key", "expired", "is not the key of"):
        assert part in text


def test_files_that_are_no_pem_are_named(folder: Path) -> None:
    for name in ("ca.crt", "tls.crt", "tls.key"):
        (folder / name).write_bytes(b"\x00\xff nothing")
    assert [fault.split(": cannot be read as PEM")[0] for fault in faults(folder)] == [
        str(folder / name) for name in ("ca.crt", "tls.crt", "tls.key")
    ]


def test_a_key_of_another_user_says_whose_it_must_be(folder: Path) -> None:
    with folder_for_all() as theirs:
        for file in folder.iterdir():
            shutil.copy2(file, theirs)
        (theirs / "tls.key").chmod(0o600 if os.geteuid() == 0 else 0)
        with nobody():
            (fault,) = faults(theirs)
    assert fault.startswith(f"{theirs / 'tls.key'}: ")
    assert "must belong to the user" in fault


@pytest.mark.parametrize(
    "look",
    [
        lambda keys: find_identity(keys, "server"),
        load_keyring,
        load_signing_key,
        entries,
        lambda keys: issue(keys, SERVER),
        lambda keys: complete(keys, {SERVER: []}),
        lambda keys: complete(keys / "below", {SERVER: []}),
    ],
)
def test_a_closed_folder_of_another_user_says_whose_it_must_be(look: Callable[[Path], object]) -> None:
    with folder_for_all() as theirs:
        create_authority(theirs / "keys")
        issue(theirs / "keys", SERVER)
        (theirs / "keys").chmod(0o700 if os.geteuid() == 0 else 0)
        with nobody(), pytest.raises(ConfigError, match=r"Permission denied.*belong to the user"):
            look(theirs / "keys")
        (theirs / "keys").chmod(0o700)


def test_an_identity_of_another_machine_is_not_taken(folder: Path) -> None:
    identity = Identity.load(folder)
    identity.require("eu-1/devices/cam-7")
    with pytest.raises(
        ConfigError,
        match="certificate is for 'eu-1/devices/cam-7', this device is 'us-1/devices/cam-7'",
    ):
        identity.require("us-1/devices/cam-7")
    with pytest.raises(ConfigError, match="this gateway is 'eu-1/gateway'"):
        identity.require("eu-1/gateway")
    with pytest.raises(ConfigError, match="this server is 'central/server'"):
        identity.require("central/server")


def test_an_identity_is_found_in_its_own_folder_and_below_the_root(root: Path, folder: Path) -> None:
    assert find_identity(folder, "devices", "eu-1", "cam-7") == folder
    assert find_identity(root, "devices", "eu-1", "cam-7") == folder
    with pytest.raises(ConfigError, match="trellis keys device cam-9 --region eu-1"):
        find_identity(root, "devices", "eu-1", "cam-9")
    with pytest.raises(ConfigError, match="trellis keys gateway us-1"):
        find_identity(root, "gateways", "us-1")


def test_operator_keys_are_found_in_any_folder(root: Path, folder: Path) -> None:
    key = load_signing_key(root / "operator")
    for keys in (root, root / "operator", folder):
        assert load_keyring(keys).keyids == (key.keyid,)


@pytest.mark.parametrize("load", [load_keyring, load_signing_key])
def test_a_missing_operator_key_is_a_config_error(tmp_path: Path, load: Callable[[Path], object]) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load(tmp_path)


def test_a_signing_key_of_another_kind_is_a_config_error(root: Path) -> None:
    shutil.copy(root / "operator" / "tls.key", root / "operator" / "signing.key")
    with pytest.raises(ConfigError, match="an operator signs with Ed25519"):
        load_signing_key(root)
