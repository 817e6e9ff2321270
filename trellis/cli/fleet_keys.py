"""Makes the keys that `trellis init` and `trellis demo` start from."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from trellis.keys import acl
from trellis.keys.authority import create_authority, issue
from trellis.keys.principals import BROKER, SERVER, gateway


def make_keys(root: Path, regions: Iterable[str]) -> None:
    """Write a CA, the operator's keys, and identities of broker, server and these regions' gateways.

    Raises:
        ConfigError: There are keys already; none is ever overwritten.
    """
    create_authority(root)
    for principal in (BROKER, SERVER, *(gateway(region) for region in regions)):
        issue(root, principal)
    acl.write(root)
