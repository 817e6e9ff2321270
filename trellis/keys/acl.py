"""The broker's access list, from the identities that were issued: who publishes and reads which topics.

Mosquitto's `pattern` lines know a client's whole name (`%u`) but no part of it, so a device's region, which
decides what it reads, and a gateway's, which decides what it writes, stand here one by one. That makes the
list the fleet's register as well: whoever is not in it can do nothing, whatever certificate it shows.

A region with a broker of its own is bridged: its devices' topics come to the broker above through its
gateway, which must then be allowed to write them, and those of the regions below it. Which gateways stand
below others the operator says, and no gateway of itself: each reads what those above it hand down, and what
those below it say. Both stand beside the list, in `bridged` and `below`, so that adding a machine does not
take a right away; so does the topics' base, in `base`, where it is not the default.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType

from trellis.errors import ConfigError
from trellis.keys.files import locked, present, replace_file
from trellis.keys.principals import BROKER, Principal, Role, gateway, named
from trellis.keys.register import entries
from trellis.topics import DEFAULT_BASE, Topics

FILE, BASE_FILE, BRIDGED_FILE, BELOW_FILE = "acl", "base", "bridged", "below"
_SAID = (
    "gateway/#",
    "tasks/#",
    "devices/+/state",
    "devices/+/info",
    "devices/+/tasks/+/execution",
    "devices/+/tasks/+/log",
)
"""What goes up of a region to those above it; not how far each device's training is."""
_FLAT: Mapping[str, str] = MappingProxyType({})


def write(
    root: Path,
    topics: Topics | None = None,
    *,
    bridged: Iterable[str] | None = None,
    below: Mapping[str, str] | None = None,
) -> Path:
    """Write the list of the machines below `root`, and return its path.

    Args:
        root: Folder of all keys.
        topics: The topics it speaks of from now on; None leaves them.
        bridged: The regions whose gateways bring their devices' topics here from now on; None leaves them.
        below: By region the one whose gateway stands above its own, from now on; None leaves them.

    Raises:
        InvalidInput: A region is none, it has no gateway here, or it would stand below itself.
    """
    folder = root / BROKER.folder
    with locked(root):
        known = clients(root)
        if topics is None:
            topics = Topics("".join(_lines(folder / BASE_FILE)) or DEFAULT_BASE)
        regions = _lines(folder / BRIDGED_FILE) if bridged is None else list(dict.fromkeys(bridged))
        if below is None:
            below = below_of(_lines(folder / BELOW_FILE))
        else:
            _require_gateways("--below", {*below, *below.values()}, known)
        if bridged is not None:
            _require_gateways("--bridged", regions, known)
            _replace_lines(folder / BRIDGED_FILE, regions)
        _replace_lines(folder / BASE_FILE, [topics.base] if topics.base != DEFAULT_BASE else [])
        _replace_lines(folder / BELOW_FILE, [f"{site}={above}" for site, above in below.items()])
        replace_file(folder / FILE, render(known, topics, bridged=regions, below=below).encode())
    return folder / FILE


def below_of(pairs: Iterable[str]) -> dict[str, str]:
    """Return who stands below whom, from `SITE=COUNTRY`.

    Raises:
        ConfigError: One is no such pair, says of a region another thing than before, or closes a circle.
    """
    found: dict[str, str] = {}
    for pair in pairs:
        site, equals, above = pair.partition("=")
        if not (equals and site and above):
            raise ConfigError(
                f"--below {pair!r}", "must be SITE=COUNTRY, as in eu-1=eu: eu-1 stands below eu"
            )
        if found.setdefault(site, above) != above:
            raise ConfigError(f"--below {pair!r}", f"{site} stands below {found[site]} already: give it once")
        if site in _above(site, found):
            raise ConfigError(f"--below {pair!r}", f"{site} would stand below itself: leave one of them out")
    return found


def clients(root: Path) -> list[Principal]:
    """Return the clients of a broker that have a certificate below `root`.

    Raises:
        InvalidInput: There is no certificate, or one names nobody that Trellis knows.
    """
    names = [entry.common_name for entry in entries(root) if entry.folder != root / "ca"]
    return [principal for principal in map(named, names) if principal.role is not Role.BROKER]


def render(
    principals: Iterable[Principal],
    topics: Topics,
    *,
    bridged: Collection[str] = (),
    below: Mapping[str, str] = _FLAT,
) -> str:
    """Return mosquitto's `acl_file` for these clients: all that is not named is forbidden."""
    lines = ["# Written by 'trellis keys': add and remove machines there, not here."]
    for principal in principals:
        lines += ["", f"user {principal.common_name}"]
        rights = _rights(principal, bridged, below)
        lines += [f"topic {access} {topics.base}/{topic}" for access, topic in rights]
    return "\n".join(lines) + "\n"


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8").split()
    except FileNotFoundError:
        return []


def _replace_lines(file: Path, lines: Collection[str]) -> None:
    if lines or present(file):
        replace_file(file, "".join(f"{line}\n" for line in lines).encode())


def _require_gateways(option: str, regions: Iterable[str], known: Collection[Principal]) -> None:
    without = sorted(region for region in regions if gateway(region) not in known)
    if without:
        raise ConfigError(
            option,
            f"{', '.join(without)} has no gateway in these keys: make it with 'trellis keys gateway'",
        )


def _above(region: str, below: Mapping[str, str]) -> list[str]:
    """Return the regions above this one, the nearest first; a circle ends with the region itself."""
    found: list[str] = []
    while (above := below.get(found[-1] if found else region)) is not None and above not in found:
        found.append(above)
    return found


def _rights(
    principal: Principal, bridged: Collection[str], below: Mapping[str, str]
) -> list[tuple[str, str]]:
    region = principal.region
    match principal.role:
        case Role.SERVER:
            return [("read", "#"), ("readwrite", "central/#")]
        case Role.GATEWAY:
            nested = [site for site in below if region in _above(site, below)]
            carries = "readwrite" if region in bridged else "read"
            return [
                ("read", "central/#"),
                ("read", f"{region}/#"),
                *[
                    ("read", f"{above}/{of}/#")
                    for above in _above(region, below)
                    for of in ("gateway", "tasks")
                ],
                *[(carries, f"{site}/{of}") for site in nested for of in _SAID],
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
