"""A folder of artefacts, each named by the SHA-256 of its content: what has that name is whole, and is that.

A download that was broken off lies beside them as `<sha256>.partial`, so that it goes on where it was, also
after a crash. Nothing else is ever there.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import time
from pathlib import Path

from trellis.artefacts.offer import DIGEST, MOST_BYTES
from trellis.errors import ArtefactError, DiskFailed
from trellis.files import sync_folder

logger = logging.getLogger(__name__)

_WHOLE = re.compile(DIGEST)
_PARTIAL = ".partial"
_CHUNK_BYTES = 1 << 20
KEPT_S = 7 * 24 * 3600.0
"""How long a download that was broken off waits to go on."""


class ArtefactStore:
    """Artefacts in `folder`, which is made when the first one comes.

    Args:
        folder: Its own folder.
        limit: Bytes of the largest artefact that is taken.
        holds: How many of that size it has room for; those not used for longest make room.
    """

    def __init__(self, folder: Path, *, limit: int = MOST_BYTES, holds: int = 8) -> None:
        self.folder, self.limit, self._holds = folder, limit, holds
        self._intact: dict[str, tuple[int, int, int]] = {}  # what the files looked like that were read whole

    def find(self, sha256: str) -> Path | None:
        """Return the artefact of that digest, None if it is not here; it counts as used now."""
        path = self._path(sha256)
        try:
            # Its other time stays: it says whether the content may have changed.
            os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))
        except OSError:
            return None
        return path

    def find_intact(self, sha256: str) -> Path | None:
        """Return the artefact of that digest, None if it is not here; one that was altered is removed.

        It is read anew only where its time, size or inode has changed.
        """
        path = self.find(sha256)
        if path is None:
            return None
        try:
            if self._intact.get(sha256) == (mark := _mark(path)):
                return path
            if digest_of(path) == sha256:
                self._intact[sha256] = mark
                return path
        except OSError as error:
            logger.warning("artefact %s cannot be read: %s", path, error)
            return None
        logger.warning("artefact %s is no longer what it was, and is removed", path)
        self.discard(sha256)
        return None

    def partial(self, sha256: str) -> Path:
        """Return the file that an artefact is written to before it is whole.

        Raises:
            DiskFailed: There is no room for its folder.
        """
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise DiskFailed(f"{self.folder} cannot be made: {error.strerror}") from error
        return self._path(sha256).with_suffix(_PARTIAL)

    def keep(self, sha256: str) -> Path:
        """Give the written file its name, if it is what that says; return where it lies then.

        Raises:
            ArtefactError: It is something else, and gone.
            DiskFailed: The disk does not take it.
        """
        partial, path = self.partial(sha256), self._path(sha256)
        try:
            came = digest_of(partial)
            if came != sha256:
                partial.unlink()
                raise ArtefactError(
                    f"artefact {sha256[:12]}…", f"what came has the SHA-256 {came}, due is {sha256}"
                )
            with partial.open("rb") as file:
                os.fsync(file.fileno())
            # Before it can be found: who asks in this moment need not read it.
            self._intact[sha256] = _mark(partial)
            partial.replace(path)
            sync_folder(self.folder)
        except OSError as error:
            raise DiskFailed(f"{path} cannot be written: {error.strerror}; free space there") from error
        self._make_room(path)
        return path

    def take(self, made: Path) -> str:
        """Take in a file that was made on the same disk; return its digest.

        Raises:
            ArtefactError: It is empty, or larger than is taken here, and stays where it is.
            DiskFailed: The disk does not take it.
        """
        size = made.stat().st_size
        if not size:
            raise ArtefactError(f"artefact {made.name}", "is empty")
        if size > self.limit:
            raise ArtefactError(
                f"artefact {made.name}", f"has {size} bytes, at most {self.limit} are taken here"
            )
        sha256 = digest_of(made)
        try:
            made.replace(self.partial(sha256))
        except OSError as error:
            raise DiskFailed(f"{made} cannot be moved to {self.folder}: {error.strerror}") from error
        self.keep(sha256)
        return sha256

    def discard(self, sha256: str) -> None:
        """Remove an artefact, and what has come of it."""
        for path in (self._path(sha256), self._path(sha256).with_suffix(_PARTIAL)):
            with contextlib.suppress(OSError):
                path.unlink()

    def tidy(self) -> None:
        """Remove what a broken download left a long time ago."""
        for path in self.folder.glob(f"*{_PARTIAL}"):
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime > KEPT_S:
                    path.unlink()

    def _path(self, sha256: str) -> Path:
        if not _WHOLE.fullmatch(sha256):
            raise ValueError(f"{sha256!r} is no SHA-256")
        return self.folder / sha256

    def _make_room(self, newest: Path) -> None:
        used: dict[Path, os.stat_result] = {}
        for path in self.folder.iterdir():
            with contextlib.suppress(FileNotFoundError):  # another thread has just made room
                if _WHOLE.fullmatch(path.name):
                    used[path] = path.stat()
        left = self._holds * self.limit
        for path in sorted(used, key=lambda path: (path == newest, used[path].st_atime), reverse=True):
            left -= used[path].st_size
            if left < 0 and path != newest:
                logger.info("artefact %s makes room", path.name)
                path.unlink(missing_ok=True)


def _mark(path: Path) -> tuple[int, int, int]:
    """Return what changes with a file's content."""
    found = path.stat()
    return (found.st_mtime_ns, found.st_size, found.st_ino)


def digest_of(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
