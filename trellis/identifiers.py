"""Identifiers of regions, devices and tasks: one path segment of a topic and of a folder."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, StringConstraints

from trellis.errors import PayloadError

PATTERN = r"[a-z0-9][a-z0-9-]{0,62}"
_IDENTIFIER = re.compile(PATTERN, re.ASCII)

CENTRAL = "central"
"""The first topic level of the central server, and so no region's name."""


def identifier(value: str, *, what: str) -> str:
    """Return `value` if it is an identifier.

    Raises:
        PayloadError: It does not match `[a-z0-9][a-z0-9-]{0,62}`.
    """
    if _IDENTIFIER.fullmatch(value) is None:
        raise PayloadError(
            f"{what} {value[:80]!r}",
            "must be 1 to 63 of a-z, 0-9 and '-', and start with a letter or digit",
        )
    return value


def region(value: str) -> str:
    """Return `value` if it can name a region.

    Raises:
        PayloadError: It is no identifier, or it is `central`.
    """
    if identifier(value, what="region") == CENTRAL:
        raise PayloadError("region 'central'", "is the central server's own name; choose another")
    return value


def replica_names(name: str, count: int) -> list[str]:
    """Return the names of `count` devices that one process is: `name-1` and so on."""
    return [f"{name}-{number}" for number in range(1, count + 1)]


def _not_central(value: str) -> str:
    if value == CENTRAL:
        raise ValueError("'central' is the central server's own name; choose another")
    return value


Identifier = Annotated[str, StringConstraints(pattern=f"^{PATTERN}$")]
RegionName = Annotated[Identifier, AfterValidator(_not_central)]
