"""The broker's access list, from the identities that were issued: who publishes and reads which topics.

Mosquitto's `pattern` lines know a client's whole name (`%u`) but no part of it, so a device's region, which
decides what it reads, and a gateway's, which decides what it writes, stand here one by one. That makes the
list the fleet's register as well: whoever is not in it can do nothing, whatever certificate it shows.

A region with a broker of its own is bridged: its devices' topics come to the server's broker through its
gateway, which must then be allowed to write them. Which regions are stands in `bridged` beside the list, so
that adding a machine does not take that right away.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path

from trellis.errors import ConfigError
from trellis.keys.files import locked, replace_file
from trellis.keys.principals import BROKER, Principal, Role, gateway, named
from trellis.keys.register import entries
from trellis.topics import Topics

FILE, BRIDGED_FILE = "acl", "bridged"


def write(root: Path, topics: Topics, *, bridged: Iterable[str] | None = None) -> Path:
    """Write the list of the machines below `root`, and return its path.

    Args:
        root: Folder of all keys.
        topics: The topics it speaks of.
        bridged: The regions whose gateways bring their devices' topics here from now on; None leaves them.

    Raises:
        InvalidInput: A region is none, or it has no gateway here.
    """
    folder = root / BROKER.folder
    with locked(root):
        known = clients(root)
        regions = _bridged(folder) if bridged is None else list(dict.fromkeys(bridged))
        if bridged is not None:
            _require_gateways(regions, known)
            replace_file(folder / BRIDGED_FILE, "".join(f"{region}\n" for region in regions).encode())
        replace_file(folder / FILE, render(known, topics, bridged=regions).encode())
    return folder / FILE


def clients(root: Path) -> list[Principal]:
    """Return the clients of a broker that have a certificate below `root`.

    Raises:
        InvalidInput: There is no certificate, or one names nobody that Trellis knows.
    """
    names = [entry.common_name for entry in entries(root) if entry.folder != root / "ca"]
    return [principal for principal in map(named, names) if principal.role is not Role.BROKER]


def render(principals: Iterable[Principal], topics: Topics, *, bridged: Collection[str] = ()) -> str:
    """Return mosquitto's `acl_file` for these clients: all that is not named is forbidden."""
    lines = ["# Written by 'trellis keys': add and remove machines there, not here."]
    for principal in principals:
        lines += ["", f"user {principal.common_name}"]
        lines += [f"topic {access} {topics.base}/{topic}" for access, topic in _rights(principal, bridged)]
    return "\n".join(lines) + "\n"


def _bridged(folder: Path) -> list[str]:
    try:
        return (folder / BRIDGED_FILE).read_text(encoding="utf-8").split()
    except FileNotFoundError:
        return []


def _require_gateways(regions: Iterable[str], known: Collection[Principal]) -> None:
    without = [region for region in regions if gateway(region) not in known]
    if without:
        raise ConfigError(
            "--bridged",
            f"{', '.join(without)} has no gateway in these keys: make it with 'trellis keys gateway'",
        )


def _rights(principal: Principal, bridged: Collection[str]) -> list[tuple[str, str]]:
    region, _, _ = principal.common_name.partition("/")
    match principal.role:
        case Role.SERVER:
            return [("read", "#"), ("readwrite", "central/#")]
        case Role.GATEWAY:
            return [
                ("read", "central/#"),
                ("read", f"{region}/#"),
                # A gateway may stand above others, and below one: it reads who they are and what they do.
                ("read", "+/gateway/#"),
                ("read", "+/tasks/#"),
                ("read", "+/devices/+/state"),
                ("read", "+/devices/+/tasks/+/execution"),
                ("readwrite", f"{region}/gateway/#"),
                ("readwrite", f"{region}/tasks/#"),
                *([("readwrite", f"{region}/devices/#")] if region in bridged else []),
            ]
        case Role.DEVICE:
            return [
                ("read", f"{region}/gateway/#"),
                ("read", f"{region}/tasks/#"),
                ("readwrite", f"{principal.common_name}/#"),
            ]
        case _:
            return [("read", "#")]
