"""The broker's access list, from the identities that were issued: who publishes and reads which topics.

Mosquitto's `pattern` lines know a client's whole name (`%u`) but no part of it, so a device's region, which
decides what it reads, and a gateway's, which decides what it writes, stand here one by one. That makes the
list the fleet's register as well: whoever is not in it can do nothing, whatever certificate it shows.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from trellis.keys.principals import Principal, Role, named
from trellis.keys.register import entries
from trellis.topics import Topics


def clients(root: Path) -> list[Principal]:
    """Return the clients of a broker that have a certificate below `root`.

    Raises:
        InvalidInput: There is no certificate, or one names nobody that Trellis knows.
    """
    names = [entry.common_name for entry in entries(root) if entry.folder != root / "ca"]
    return [principal for principal in map(named, names) if principal.role is not Role.BROKER]


def render(principals: Iterable[Principal], topics: Topics) -> str:
    """Return mosquitto's `acl_file` for these clients: all that is not named is forbidden."""
    lines = ["# Written by 'trellis keys': add and remove machines there, not here."]
    for principal in principals:
        lines += ["", f"user {principal.common_name}"]
        lines += [f"topic {access} {topics.base}/{topic}" for access, topic in _rights(principal)]
    return "\n".join(lines) + "\n"


def _rights(principal: Principal) -> list[tuple[str, str]]:
    region, _, _ = principal.common_name.partition("/")
    match principal.role:
        case Role.SERVER:
            return [("read", "#"), ("readwrite", "central/#")]
        case Role.GATEWAY:
            return [
                ("read", "central/#"),
                ("read", f"{region}/#"),
                ("readwrite", f"{region}/gateway/#"),
                ("readwrite", f"{region}/tasks/#"),
            ]
        case Role.DEVICE:
            return [
                ("read", f"{region}/gateway/#"),
                ("read", f"{region}/tasks/#"),
                ("readwrite", f"{principal.common_name}/#"),
            ]
        case _:
            return [("read", "#")]
