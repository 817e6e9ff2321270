"""A file system of a few megabytes for a test, real, so that it is really full."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

_FILLER = "filler"


@contextlib.contextmanager
def small_disk(folder: Path, *, size: str) -> Iterator[Path]:
    """A file system of `size` at `folder`; where none may be made the test is skipped, and in CI it fails."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=True)
    except (OSError, subprocess.CalledProcessError):
        problem = "a file system can only be made by root"
        if os.environ.get("CI"):
            pytest.fail(f"{problem}, and CI must not skip what needs one")
        pytest.skip(problem)
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def fill(folder: Path) -> None:
    """Take all the room that is left."""
    with (folder / _FILLER).open("wb", buffering=0) as filler, contextlib.suppress(OSError):
        while True:
            filler.write(bytes(4096))


def free(folder: Path) -> None:
    """Give the room back."""
    (folder / _FILLER).unlink()
