"""A file that takes its name only when it has been tried."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trellis.files import sync_folder, write_atomically


@contextmanager
def checked(path: Path, content: bytes) -> Iterator[Path]:
    """Write the content beside `path`, give that file to be tried, and let it take the place of `path`.

    An error in the block leaves what was there.
    """
    beside = path.with_name(f".{path.stem}.unchecked{path.suffix}")
    try:
        write_atomically(beside, content, mode=0o644)
        yield beside
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    sync_folder(path.parent)
