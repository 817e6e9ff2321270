"""Renews certificates under the same CA: keys stay, so that nothing secret has to be copied again."""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection, Iterable
from pathlib import Path

from trellis.errors import ConfigError, Fault, InvalidInput
from trellis.keys.authority import load_authority
from trellis.keys.certificates import LEAF_DAYS, Authority, ca_certificate, hosts_of, leaf, pem
from trellis.keys.expiry import CA_SOON, SOON
from trellis.keys.files import PUBLIC_FILE, locked, replace_file
from trellis.keys.identity import issued_by
from trellis.keys.principals import Principal, named
from trellis.keys.register import Entry, certificate_in, entries
from trellis.nearest import did_you_mean

CA = "ca"


def renew(
    root: Path, names: Collection[str] = (), *, hosts: Collection[str] = (), days: int = LEAF_DAYS
) -> list[Entry]:
    """Renew certificates below `root`, and return them.

    The CA's own is renewed with its key and name: whoever has the old one takes what is issued under the new
    one, and the other way round, until the old one ends.

    Args:
        root: Folder of all keys.
        names: Whose; `ca` is the CA. None: all that end within 30 days, and the CA if it ends before what it
            would issue now.
        hosts: Names and addresses for the renewed, in place of those that they have.
        days: How long they hold.

    Raises:
        ConfigError: There is no such certificate, it is another CA's, or it takes no hosts.
    """
    with locked(root):
        authority = load_authority(root)
        found = _known(root)
        chosen = _chosen(found, names) if names else _due(found)
        _require_listening(hosts, chosen, found)
        _require_own(authority, [found[name] for name in chosen if name != CA])
        if CA in chosen:
            authority = _renew_ca(root, authority, found)
        for name in chosen:
            if name != CA:
                _renew_leaf(authority, found[name].folder, named(name), hosts, days)
        now = _known(root)
        return [now[name] for name in chosen]


def _known(root: Path) -> dict[str, Entry]:
    """Return by its name each certificate in its own place; copies that were moved aside are in none."""
    found: dict[str, Entry] = {}
    for entry in entries(root):
        if entry.folder == root / CA:
            found[CA] = entry
        elif entry.folder == _place(root, entry.common_name):
            found[entry.common_name] = entry
    return found


def _place(root: Path, common_name: str) -> Path | None:
    try:
        return root / named(common_name).folder
    except InvalidInput:
        return None


def _chosen(found: dict[str, Entry], names: Iterable[str]) -> list[str]:
    chosen = list(dict.fromkeys(names))
    for name in chosen:
        if name not in found:
            known = did_you_mean(name, found, before="; ")
            raise ConfigError(
                f"certificate {name!r}", f"is not here: give a name as 'trellis keys show' has it{known}"
            )
    return chosen


def _due(found: dict[str, Entry]) -> list[str]:
    now = dt.datetime.now(dt.UTC)
    return [
        name for name, entry in found.items() if entry.not_after < now + (CA_SOON if name == CA else SOON)
    ]


def _require_listening(hosts: Collection[str], chosen: Collection[str], found: dict[str, Entry]) -> None:
    if not hosts:
        return
    listening = [name for name in found if name != CA and named(name).listens]
    deaf = [name for name in chosen if name not in listening]
    if deaf or not chosen:
        raise ConfigError(
            "--host", f"is for those that others connect to: give one or several of {', '.join(listening)}"
        )


def _require_own(authority: Authority, leaves: Iterable[Entry]) -> None:
    foreign = [
        Fault(str(entry.folder), "has a certificate of another CA", "move it away, and make a new one")
        for entry in leaves
        if not issued_by(certificate_in(entry.folder / "tls.crt"), authority.certificate)
    ]
    if foreign:
        raise ConfigError("nothing was renewed", foreign)


def _renew_ca(root: Path, old: Authority, found: dict[str, Entry]) -> Authority:
    new = Authority(ca_certificate(old.key), old.key)
    replace_file(root / CA / "ca.crt", pem(new.certificate), mode=PUBLIC_FILE)
    for name, entry in found.items():
        if name != CA and issued_by(certificate_in(entry.folder / "tls.crt"), old.certificate):
            replace_file(entry.folder / "ca.crt", pem(new.certificate), mode=PUBLIC_FILE)
    return new


def _renew_leaf(
    authority: Authority, folder: Path, principal: Principal, hosts: Collection[str], days: int
) -> None:
    old = certificate_in(folder / "tls.crt")
    renewed = leaf(authority, principal, old.public_key(), hosts or hosts_of(old), days)
    # After a kill between both either certificate goes with either CA's.
    replace_file(folder / "ca.crt", pem(authority.certificate), mode=PUBLIC_FILE)
    replace_file(folder / "tls.crt", pem(renewed), mode=PUBLIC_FILE)
