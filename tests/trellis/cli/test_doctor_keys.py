"""What `trellis doctor` says of keys and certificates."""

from __future__ import annotations

import datetime as dt
import os
from pathlib import Path

import pytest
from other_user import folder_for_all, nobody

from trellis.cli.doctor.check import Check, Status, blocking, examine, ok
from trellis.cli.doctor.keys import keys
from trellis.keys import authority, certificates, principals, renewal


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "keys"
    authority.create_authority(folder)
    authority.issue(folder, principals.SERVER)
    return folder


def looked(folder: Path, *, given: bool = True) -> dict[str, Check]:
    return {check.name: check for check in keys(folder, given=given)}


def test_the_folder_of_all_keys_is_looked_through(root: Path) -> None:
    checks = looked(root)
    assert {check.status for check in checks.values()} == {Status.OK}
    assert checks["keys.identity"].found == "operator, central/server"
    # Midnight may have come since they were issued.
    days = [dt.datetime.now(dt.UTC) + dt.timedelta(days=days) for days in (364, 365)]
    assert checks["keys.certificate"].found.endswith(tuple(f", {day:%Y-%m-%d}" for day in days))
    assert checks["keys.operator"].found.startswith("pinned: ")


def test_a_machines_own_folder_is_enough(root: Path) -> None:
    own = authority.issue(root, principals.device("eu-1", "cam-7"))
    checks = looked(own)
    assert {check.status for check in checks.values()} == {Status.OK}
    assert checks["keys.identity"].found == "eu-1/devices/cam-7"


def test_a_certificate_that_ends_within_30_days_is_a_warning(root: Path) -> None:
    authority.issue(root, principals.gateway("eu-1"), days=29)
    checks = looked(root)
    assert checks["keys.certificate"].status is Status.WARNING
    assert checks["keys.certificate"].found.startswith("eu-1/gateway expires ")
    assert checks["keys.identity"].status is Status.OK
    again = authority.issue(root, principals.gateway("us-1"), days=31)
    assert looked(again)["keys.certificate"].status is Status.OK


def test_an_expired_certificate_is_a_failure_told_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certificates, "_days", lambda days: days)
    authority.issue(root, principals.gateway("eu-1"), days=0)
    monkeypatch.undo()
    checks = looked(root)
    assert checks["keys.certificate"].status is Status.FAILURE
    assert checks["keys.certificate"].found.startswith("eu-1/gateway expired ")
    assert "trellis keys renew" in checks["keys.certificate"].remedy
    assert checks["keys.identity"].status is Status.OK


def test_a_ca_that_ends_before_what_it_would_issue_is_a_warning(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for days, status in ((394, Status.WARNING), (396, Status.OK)):
        monkeypatch.setattr(certificates, "CA_DAYS", days)
        renewal.renew(root, ["ca"])
        check = looked(root)["keys.certificate"]
        assert (check.status, "trellis keys renew" in check.remedy) == (status, status is Status.WARNING)


@pytest.mark.parametrize("closed", [".", "ca", "server"])
@pytest.mark.parametrize("given", [True, False])
def test_a_folder_of_another_user_is_a_failure_that_says_so(closed: str, *, given: bool) -> None:
    with folder_for_all() as theirs:
        authority.create_authority(theirs / "keys")
        authority.issue(theirs / "keys", principals.SERVER)
        for folder in ("keys", "keys/ca", "keys/operator", "keys/server"):
            (theirs / folder).chmod(0o755)
        (theirs / "keys" / closed).chmod(0o700 if os.geteuid() == 0 else 0)
        with nobody():
            check = looked(theirs / "keys", given=given)["keys.identity"]
        (theirs / "keys" / closed).chmod(0o700)
    assert check.status is Status.FAILURE
    assert f"{(theirs / 'keys' / closed)}" in check.found
    assert "Permission denied" in check.found
    assert "belong to the user" in check.found + check.remedy


async def test_what_a_probe_raises_is_a_failure_of_its_own_and_hides_no_other() -> None:
    def broken() -> list[Check]:
        raise PermissionError(13, "Permission denied", "/root/keys")

    first, second = await examine(
        [blocking(["one"], broken), blocking(["two"], lambda: [ok("two", "is well")])], deadline_s=30
    )
    assert (first.name, first.status) == ("one", Status.FAILURE)
    assert first.found == "cannot be looked at: PermissionError: [Errno 13] Permission denied: '/root/keys'"
    assert second.status is Status.OK


def test_a_key_that_others_can_read_is_a_failure_with_the_command_that_mends_it(root: Path) -> None:
    key = root / "server" / "tls.key"
    key.chmod(0o644)
    check = looked(root)["keys.identity"]
    assert check.status is Status.FAILURE
    assert check.found == f"{key}: is open to other users (mode 0644)"
    assert check.remedy == f"chmod 600 {key}"


def test_a_missing_operators_key_is_a_failure(root: Path) -> None:
    own = root / "server"
    (own / "operator.pub").unlink()
    assert looked(own)["keys.operator"].status is Status.FAILURE


def test_a_key_of_another_is_a_failure(root: Path) -> None:
    other = authority.issue(root, principals.gateway("eu-1"))
    (other / "tls.key").write_bytes((root / "server" / "tls.key").read_bytes())
    check = looked(root)["keys.identity"]
    assert check.status is Status.FAILURE
    assert "is not the key of tls.crt" in check.found


def test_no_keys_are_skipped_by_default_and_a_failure_where_they_were_named(tmp_path: Path) -> None:
    missing = tmp_path / "keys"
    assert {check.status for check in looked(missing, given=False).values()} == {Status.SKIPPED}
    checks = looked(missing)
    assert checks["keys.identity"].status is Status.FAILURE
    assert "trellis keys init" in checks["keys.identity"].remedy
    assert checks["keys.certificate"].status is Status.SKIPPED


def test_a_certificate_that_cannot_be_read_is_a_failure(root: Path) -> None:
    (root / "server" / "tls.crt").write_text("no certificate")
    check = looked(root)["keys.identity"]
    assert check.status is Status.FAILURE
    assert str(root / "server" / "tls.crt") in check.found
