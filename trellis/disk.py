"""Whether a folder's disk takes anything, and gives what it has."""

from __future__ import annotations

import contextlib
from pathlib import Path

_PROBE = ".probe"
_PROBE_BYTES = 1 << 20
"""A line of a log may still fit where a model does not."""
_CHUNK_BYTES = 1 << 20


def probe(folder: Path) -> None:
    """Return if `folder` has room for a file of 1 MiB, which is gone again; raises OSError if it has not."""
    path = folder / _PROBE
    try:
        path.write_bytes(bytes(_PROBE_BYTES))
    finally:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def has_room(folder: Path) -> bool:
    """Return whether `folder` has room for a file of 1 MiB."""
    try:
        probe(folder)
    except OSError:
        return False
    return True


def read_through(path: Path) -> None:
    """Return if the disk gives every byte of a file; raises OSError if it does not."""
    with path.open("rb", buffering=0) as file:
        while file.read(_CHUNK_BYTES):
            pass
