"""A file of which a disk gives the beginning alone: its first half can be read, and the rest is an error."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch


class _Torn(io.FileIO):
    """No file system that can be had without root has bad blocks: this is where `read` would say so."""

    def read(self, size: int | None = -1) -> bytes:
        half = os.fstat(self.fileno()).st_size // 2
        if size is None or size < 0 or self.tell() + size > half:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return super().read(size)


@contextmanager
def bad_block(path: Path) -> Iterator[None]:
    """Within the block `path` gives its first half alone."""
    opened = Path.open

    def open_(self: Path, *arguments: Any, **options: Any) -> Any:
        return _Torn(self) if self == path else opened(self, *arguments, **options)

    with patch.object(Path, "open", open_):
        yield
