"""What a folder of keys holds: identities, their certificates, and the operator's key."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

from trellis.cli.doctor.check import Check, failure, ok, skipped, warning
from trellis.errors import ConfigError, InvalidInput
from trellis.keys.expiry import CA_SOON, SOON
from trellis.keys.files import present
from trellis.keys.identity import Identity, load_keyring
from trellis.keys.principals import named
from trellis.keys.register import Entry, entries

NAMES = ("keys.identity", "keys.certificate", "keys.operator")
_DAY = "%Y-%m-%d"
_SHOWN = 5


def keys(folder: Path, *, given: bool) -> list[Check]:
    """Look at a machine's own folder, or the folder of all keys.

    Args:
        given: Whether it was named; the default need not be there.
    """
    try:
        if not given and not present(folder):
            why = f"no folder {folder} is here, and none was named"
            return [skipped(name, why, "give --keys DIR") for name in NAMES]
        found = entries(folder)
    except ConfigError as error:
        remedies = "; ".join(fault.remedy for fault in error.faults if fault.remedy)
        init = f"trellis keys init {folder}"
        return [
            failure("keys.identity", str(error), remedies or f"make keys with {init!r}, or copy them here"),
            *(skipped(name, "there is no identity") for name in NAMES[1:]),
        ]
    return [_identity(found, folder), _certificate(found, folder), _operator(folder)]


def _identity(found: list[Entry], folder: Path) -> Check:
    leaves = [entry for entry in found if entry.folder != folder / "ca"]
    faults: list[str] = []
    remedies: list[str] = []
    for entry in leaves:
        try:
            named(entry.common_name)
            Identity.load(entry.folder)
        except InvalidInput as error:
            # What has expired is told once, by the certificate's own check.
            mine = [fault for fault in error.faults if not fault.problem.startswith("expired ")]
            faults += [f"{fault.field}: {fault.problem}" if fault.field else fault.problem for fault in mine]
            remedies += [fault.remedy for fault in mine if fault.remedy]
    if faults:
        remedy = "; ".join(dict.fromkeys(remedies)) or "issue a new one with 'trellis keys'"
        return failure("keys.identity", _several(faults), remedy)
    if not leaves:
        return failure("keys.identity", "only a CA is here", "issue identities with 'trellis keys'")
    return ok("keys.identity", _several([entry.common_name for entry in leaves]))


def _certificate(found: list[Entry], folder: Path) -> Check:
    now = dt.datetime.now(dt.UTC)
    first = min(found, key=lambda entry: entry.not_after)
    expired = [entry for entry in found if entry.not_after <= now]
    soon = [entry for entry in found if now < entry.not_after < now + _soon(entry, folder)]
    remedy = (
        "run 'trellis keys renew' where the CA's key is, copy ca.crt and tls.crt to the machine, and restart "
        "what runs there"
    )
    if expired:
        told = [f"{entry.common_name} expired {entry.not_after:{_DAY}}" for entry in expired]
        return failure("keys.certificate", _several(told), remedy)
    if soon:
        told = [f"{entry.common_name} expires {entry.not_after:{_DAY}}" for entry in soon]
        return warning("keys.certificate", _several(told), remedy)
    return ok("keys.certificate", f"the first to expire is {first.common_name}, {first.not_after:{_DAY}}")


def _soon(entry: Entry, folder: Path) -> dt.timedelta:
    return CA_SOON if entry.folder == folder / "ca" else SOON


def _operator(folder: Path) -> Check:
    try:
        keyids = load_keyring(folder).keyids
    except InvalidInput as error:
        return failure("keys.operator", str(error), "copy operator.pub beside the certificate")
    return ok("keys.operator", f"pinned: {_several(list(keyids))}")


def _several(items: list[str]) -> str:
    more = f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return f"{', '.join(items[:_SHOWN])}{more}"
