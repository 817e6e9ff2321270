"""Files that a kill at any moment leaves whole."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from trellis.errors import ConfigError, DiskFailed


def write_atomically(path: Path, content: bytes, *, mode: int | None = None) -> None:
    """Replace the file in one step: after a kill at any moment it holds the old content or the new."""
    with replacing(path, mode=mode) as file:
        file.write(content)


@contextmanager
def replacing(path: Path, *, mode: int | None = None) -> Iterator[BinaryIO]:
    """Give a file to write, which takes the place of `path` at the end of the block, and is on the disk then.

    What a device, a pipe or our own output takes, it takes at once; nothing takes the place of one.

    An error leaves what was there and nothing else; a kill may leave `.NAME.partial` beside it, which the
    next writer replaces. One writes at a time.

    Args:
        path: The file to replace.
        mode: Its permissions from its first moment on; by default what the umask leaves of 0666.
    """
    if _is_stream(path):
        own = _own_output(path)
        # Of our own output the place to write goes on with it, as nothing else does that opens the file anew.
        with path.open("wb") if own is None else os.fdopen(os.dup(own), "wb") as file:
            yield file
        return
    partial = path.with_name(f".{path.name}.partial")
    partial.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    try:
        with os.fdopen(os.open(partial, flags, 0o666 if mode is None else mode), "wb") as file:
            if mode is not None:
                os.fchmod(file.fileno(), mode)  # whatever the umask took away
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)  # a full disk must not be kept full by what it did not take
        raise
    sync_folder(path.parent)


@contextmanager
def output_file(path: Path) -> Iterator[None]:
    """Tell of what a command writes to `path` within the block that the disk did not take it.

    Raises:
        DiskFailed: It is full, or fails.
    """
    try:
        yield
    except BrokenPipeError:
        raise  # whoever read it has gone: that is the edge's business
    except OSError as error:
        raise DiskFailed(f"{path} cannot be written: {error.strerror}; free space there") from error


def writable_file(
    path: Path, *, option: str, only_files: bool = False, apart_from: Iterable[Path] = ()
) -> Path:
    """Return the file to write where an option asks for `path`, once it is known that it can be written.

    Behind a link it is what that leads to, so that the link stays. What stands there is left alone: it is
    tried with a file beside it, of a name as long as those on the way.

    Args:
        path: What the option gives.
        option: Its name, for the error.
        only_files: Whether a device such as /dev/null, or the shell's pipe, is refused.
        apart_from: Files that are read, and are to stay.

    Raises:
        ConfigError: It is a folder, a pipe with a name (perhaps nobody reads it), a disk, or a file that is
            read; or its folder is not there, none, or takes no file.
    """
    what = f"{option} {str(path)!r}"
    try:
        is_stream = _is_stream(path)
        if is_stream and not only_files and os.access(path, os.W_OK):
            return path
        target = path.resolve() if path.is_symlink() else path
        if target.is_dir():
            raise ConfigError(what, "is a folder: name a file in it")
        if is_stream or (path.exists() and not path.is_file()):
            raise ConfigError(what, "is no ordinary file: name another one")
        if target.exists() and any(other.exists() and target.samefile(other) for other in apart_from):
            raise ConfigError(what, "is read by the same command: name another one")
        folder = target.parent
        if not folder.exists():
            raise ConfigError(what, f"folder {str(folder)!r} does not exist: make it, or name another")
        if not folder.is_dir():
            raise ConfigError(what, f"{str(folder)!r} is no folder: name another")
        with tempfile.NamedTemporaryFile(prefix=f".{target.name}.", suffix=".partial", dir=folder):
            pass
    except (OSError, ValueError, RuntimeError) as error:  # links in a circle are a RuntimeError
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError(what, f"cannot be written: {reason}: name another file") from None
    return target


def _is_stream(path: Path) -> bool:
    """Return whether `path` leads to a character device, our own output or a pipe without a name."""
    if path.is_char_device() or _own_output(path) is not None:
        return True
    return path.is_fifo() and not path.resolve().exists()


def _own_output(path: Path) -> int | None:
    """Return which of this process's outputs goes to `path`, as of /dev/stdout one does; None for neither."""
    for descriptor in (1, 2):
        with suppress(OSError):
            if os.path.samestat(path.stat(), os.fstat(descriptor)):
                return descriptor
    return None


def sync_folder(folder: Path) -> None:
    """Flush the folder itself: a new name survives a power cut only then."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def append_line(path: Path, line: bytes) -> None:
    """Append one line, on the disk when this returns; a line before it that a kill tore stays apart."""
    with path.open("ab+") as file:
        if file.tell() and _last_byte(file.fileno()) != b"\n":
            line = b"\n" + line
        file.write(line + b"\n")
        file.flush()
        os.fsync(file.fileno())


def _last_byte(descriptor: int) -> bytes:
    return os.pread(descriptor, 1, os.fstat(descriptor).st_size - 1)
