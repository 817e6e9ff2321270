"""Writes key files so that nobody else could read them for a moment, and nothing is half there."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from trellis.errors import ConfigError, Fault
from trellis.files import sync_folder, write_atomically

PRIVATE_FILE = 0o600
PUBLIC_FILE = 0o644
PRIVATE_FOLDER = 0o700


def present(path: Path) -> bool:
    """Return whether `path` is there.

    Raises:
        ConfigError: Nobody can tell, as where this user may not look.
    """
    # Not Path.exists(): what that takes for absent grows with Python's versions, to every OSError in 3.14.
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise unreadable(path, error) from None
    return True


def remedy(error: OSError) -> str:
    """Return what to do where a file of keys cannot be read."""
    if isinstance(error, PermissionError):
        return "it must belong to the user that runs this"
    return "copy the identity's whole folder here"


def unreadable(path: Path, error: OSError) -> ConfigError:
    """Return what is to be said of a file or folder of keys that cannot be read."""
    return ConfigError("keys", [Fault(str(path), error.strerror or str(error), remedy(error))])


def make_folders(folder: Path) -> None:
    """Create `folder` and its missing parents, each 0700 from its first moment."""
    missing = []
    while not present(folder):
        missing.append(folder)
        folder = folder.parent
    for path in reversed(missing):
        try:
            path.mkdir(mode=PRIVATE_FOLDER, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"folder {path}", f"cannot be created: {error.strerror}") from error


def write_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    """Create `folder` with these files, all at once or not at all; `*.key` are private.

    Raises:
        ConfigError: It exists and is not empty: a private key is never overwritten.
    """
    make_folders(folder.parent)
    try:
        # A sibling, so that the rename stays on one file system; mkdtemp makes it 0700.
        fresh = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    except OSError as error:
        raise ConfigError(f"folder {folder.parent}", f"cannot be written: {error.strerror}") from error
    try:
        for name, content in files.items():
            mode = PRIVATE_FILE if name.endswith(".key") else PUBLIC_FILE
            write_atomically(fresh / name, content, mode=mode)
        # rename(2) onto a folder succeeds only if that is empty.
        fresh.rename(folder)
        sync_folder(folder.parent)
    except OSError as error:
        then = ""
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
            then = "; keys are never overwritten, so move what is there away"
        raise ConfigError(f"folder {folder}", f"cannot take new keys: {error.strerror}{then}") from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def replace_file(path: Path, content: bytes, *, mode: int = PRIVATE_FILE) -> None:
    """Write a file whole, over what was there; never used on a key."""
    try:
        write_atomically(path, content, mode=mode)
    except OSError as error:
        raise ConfigError(f"file {path}", f"cannot be written: {error.strerror}") from error


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold `folder` against other writers of its lists; the kernel lets go if we die.

    Raises:
        ConfigError: There is no such folder.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise ConfigError(
            f"folder {folder}", f"{error.strerror}: give the folder that 'trellis keys init' wrote"
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
