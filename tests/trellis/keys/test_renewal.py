"""Renewed certificates: whose, for how long, under which names; and that nothing else of a folder changes."""

from __future__ import annotations

import datetime as dt
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509

from trellis.errors import ConfigError
from trellis.keys import certificates
from trellis.keys.authority import create_authority, issue
from trellis.keys.certificates import hosts_of
from trellis.keys.identity import Identity
from trellis.keys.principals import BROKER, OPERATOR, SERVER, device, gateway
from trellis.keys.renewal import renew

NOW = dt.datetime.now(dt.UTC)
DAY = dt.timedelta(days=1)
CAM = device("eu-1", "cam-7")
ALL = (OPERATOR, SERVER, BROKER, gateway("eu-1"), CAM)
Reissue = Callable[[Path, dt.datetime, dt.datetime], None]


@pytest.fixture
def fleet(root: Path) -> Path:
    """The folder of all keys, with one of each kind."""
    for principal in ALL[1:]:
        issue(root, principal, ["10.0.0.5"])
    return root


def certificate(folder: Path, name: str = "tls.crt") -> x509.Certificate:
    return x509.load_pem_x509_certificate((folder / name).read_bytes())


def ca_ending(root: Path, monkeypatch: pytest.MonkeyPatch, days: int) -> None:
    """Make the CA's certificate, and whatever it issued, end in so many days."""
    with monkeypatch.context() as patch:
        patch.setattr(certificates, "CA_DAYS", days)
        renew(root, ["ca"])


def test_a_renewed_identity_loads_with_its_key_its_name_and_a_new_end(fleet: Path, reissue: Reissue) -> None:
    for principal in ALL:
        folder = fleet / principal.folder
        reissue(folder, NOW - 3 * DAY, NOW - DAY)
        before = {path: path.read_bytes() for path in folder.iterdir() if path.name != "tls.crt"}
        (entry,) = renew(fleet, [principal.common_name])
        assert entry.folder == folder
        assert {path: path.read_bytes() for path in before} == before
        identity = Identity.load(folder)
        assert identity.common_name == principal.common_name
        assert NOW + 364 * DAY < identity.not_after < NOW + 366 * DAY
    assert (fleet / "server" / "tls.crt").stat().st_mode & 0o777 == 0o644


def test_hosts_stay_unless_others_are_given(fleet: Path) -> None:
    local = ["localhost", "127.0.0.1", "::1"]
    renew(fleet, ["central/server", "eu-1/devices/cam-7"])
    assert hosts_of(certificate(fleet / "server")) == [*local, "10.0.0.5"]
    assert hosts_of(certificate(fleet / CAM.folder)) == []
    renew(fleet, ["central/server", "broker"], hosts=["10.0.0.9", "fl.example.org"])
    for folder in ("server", "broker"):
        assert hosts_of(certificate(fleet / folder)) == [*local, "10.0.0.9", "fl.example.org"]
    assert hosts_of(certificate(fleet / "gateways" / "eu-1")) == [*local, "10.0.0.5"]


@pytest.mark.parametrize("names", [[], ["operator"], ["central/server", "eu-1/devices/cam-7"], ["ca"]])
def test_hosts_for_whom_nobody_connects_to_are_refused_and_nothing_is_renewed(
    fleet: Path, names: list[str]
) -> None:
    before = {path: path.read_bytes() for path in fleet.rglob("*.crt")}
    with pytest.raises(
        ConfigError, match=r"--host.*give one or several of broker, eu-1/gateway, central/server"
    ):
        renew(fleet, names, hosts=["10.0.0.9"])
    assert {path: path.read_bytes() for path in fleet.rglob("*.crt")} == before


def test_without_names_what_ends_within_a_month_is_renewed(fleet: Path, reissue: Reissue) -> None:
    assert renew(fleet) == []
    reissue(fleet / "server", NOW - DAY, NOW + 29 * DAY)
    reissue(fleet / CAM.folder, NOW - 3 * DAY, NOW - DAY)
    reissue(fleet / "broker", NOW - DAY, NOW + 31 * DAY)
    assert [entry.common_name for entry in renew(fleet)] == ["eu-1/devices/cam-7", "central/server"]
    assert renew(fleet) == []


def test_a_copy_that_was_moved_aside_is_left_alone(fleet: Path, reissue: Reissue) -> None:
    shutil.copytree(fleet / "server", fleet / "server.old")
    reissue(fleet / "server.old", NOW - 3 * DAY, NOW - DAY)
    assert renew(fleet) == []
    (entry,) = renew(fleet, ["central/server"])
    assert entry.folder == fleet / "server"


def test_a_name_that_is_not_there_is_an_error_that_names_the_nearest(fleet: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"certificate 'eu-1/devices/cam-8': is not here.*eu-1/devices/cam-7"
    ):
        renew(fleet, ["eu-1/devices/cam-8"])


def test_another_cas_certificate_is_refused(fleet: Path, tmp_path: Path) -> None:
    create_authority(tmp_path / "other")
    shutil.copytree(tmp_path / "other" / "ca", fleet / "ca", dirs_exist_ok=True)
    with pytest.raises(ConfigError, match="has a certificate of another CA"):
        renew(fleet, ["central/server"])


def test_one_certificate_of_another_ca_keeps_all_from_being_renewed_half(fleet: Path, tmp_path: Path) -> None:
    create_authority(tmp_path / "other")
    foreign = issue(tmp_path / "other", CAM)
    shutil.rmtree(fleet / CAM.folder)
    shutil.copytree(foreign, fleet / CAM.folder)
    before = {file: file.read_bytes() for file in fleet.rglob("*.crt")}
    with pytest.raises(ConfigError, match=r"nothing was renewed: .*cam-7: has a certificate of another"):
        renew(fleet, ["ca", "central/server", "eu-1/devices/cam-7"])
    assert {file: file.read_bytes() for file in fleet.rglob("*.crt")} == before


def test_where_the_cas_key_is_not_kept_nothing_is_renewed(fleet: Path) -> None:
    for names in (["central/server"], []):
        with pytest.raises(
            ConfigError, match=r"has no certificate authority.*give the folder that 'trellis keys"
        ):
            renew(fleet / "server", names)
    (fleet / "ca" / "ca.key").unlink()
    for names in (["central/server"], []):
        with pytest.raises(ConfigError, match=r"ca/ca\.key: No such file.*bring the file back"):
            renew(fleet, names)


def test_a_ca_that_ends_before_what_it_would_issue_is_renewed_and_is_the_same(
    fleet: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = certificate(fleet / "ca", "ca.crt")
    ca_ending(fleet, monkeypatch, 390)
    short = certificate(fleet / "ca", "ca.crt")
    assert [entry.folder for entry in renew(fleet)] == [fleet / "ca"]
    renewed = certificate(fleet / "ca", "ca.crt")
    assert renewed.not_valid_after_utc > NOW + 3649 * DAY
    assert (renewed.subject, renewed.public_key()) == (first.subject, first.public_key())
    assert short.not_valid_after_utc < NOW + 391 * DAY
    for principal in ALL:
        assert certificate(fleet / principal.folder, "ca.crt") == renewed
        Identity.load(fleet / principal.folder)


def test_an_ended_ca_issues_nothing_and_renewing_it_mends_that(
    fleet: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ca_ending(fleet, monkeypatch, 0)
    with pytest.raises(ConfigError, match=r"ended .*trellis keys renew ca"):
        issue(fleet, gateway("us-1"))
    with pytest.raises(ConfigError, match=r"ca\.crt: expired .*trellis keys renew ca"):
        Identity.load(fleet / "server")
    assert {entry.folder for entry in renew(fleet)} == {fleet / "ca"}
    Identity.load(fleet / "server")
    Identity.load(issue(fleet, gateway("us-1")))
