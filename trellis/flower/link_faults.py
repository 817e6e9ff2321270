"""What a server's refusal, its silence and a full disk mean to a Flower client: one of our errors each.

FlowerLink.connect / pull / push
├── Unavailable         the server does not answer, or does not know this node any more: connect again
├── ConfigError         this client's own folder, or a file in it, is not its own, or something else
├── DiskFailed          a message, or who we are, cannot be kept: the disk is full
├── Refused "reply"     the SuperLink did not take a reply (the run is over, or it took an error instead)
└── Refused "link"      the server refuses this device, perhaps for its clock
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from flwr.supercore.inflatable.inflatable_utils import ObjectPullError, ObjectPushError

from trellis.durations import in_words
from trellis.errors import ConfigError, DiskFailed, Refused, Unavailable
from trellis.flower.device_headers import (
    CLOCK_AHEAD_S,
    CLOCK_BEHIND_S,
    FLEET_RUN_STATUS_NOT_ALLOWED,
    clock_ahead_s,
)

_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO}
_PASSING = {errno.ENOENT, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EINTR, errno.EAGAIN}
_MINUTE_S = 60.0
_REFUSED = {httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN}


@contextmanager
def told(address: str, folder: Path, *, connecting: bool = False, replying: bool = False) -> Iterator[None]:
    """Turn what is raised inside into one of our errors.

    Args:
        address: The server that is spoken with.
        folder: Where this client keeps what must survive it.
        connecting: A refusal is meant for this device; to a known node it only says that the SuperLink has
            been started anew.
        replying: The run may be over.
    """
    try:
        yield
    except httpx.HTTPStatusError as error:
        if replying and _code(error.response) == FLEET_RUN_STATUS_NOT_ALLOWED:
            # A crash left the message unanswered until its run had ended: no repetition will help.
            raise untaken(address) from error
        status = error.response.status_code
        said = f"HTTP {status}: {error.response.text[:200].strip()}"
        if connecting and status in _REFUSED:
            why = _clock_fault(error.response) or said
            raise Refused("link", f"{address} refuses this device: {why}") from error
        raise Unavailable(f"{address} does not serve this node: {said}") from error
    except (httpx.TransportError, OSError, ObjectPullError, ObjectPushError, ValueError) as error:
        if isinstance(error, OSError) and error.errno in _DISK:
            raise DiskFailed(f"{folder} cannot be written: {error.strerror}; free space there") from error
        if isinstance(error, OSError) and error.filename is not None and error.errno not in _PASSING:
            raise ConfigError(
                f"Flower node's {str(error.filename)!r}",
                f"{error.strerror}: this user's own belongs there: mend its owner and mode, or remove it",
            ) from error
        raise Unavailable(f"{address} does not answer: {error or type(error).__name__}") from error


def untaken(address: str, answered: str = "") -> Refused:
    """Return the error of a reply that the SuperLink at `address` did not take."""
    of = f" to message {answered[:8]}" if answered else ""
    return Refused("reply", f"{address} did not take the reply{of}: its run is over")


def _clock_fault(response: httpx.Response) -> str | None:
    """Return what is wrong with this device's clock, if it is what a request was refused for."""
    ahead_s = clock_ahead_s(response) if response.status_code == httpx.codes.UNAUTHORIZED else None
    # A second of grace: what was refused is known by the second, and as of when it was answered.
    if ahead_s is None or 1 - CLOCK_BEHIND_S < ahead_s < CLOCK_AHEAD_S - 1:
        return None
    off_s = abs(ahead_s)
    span = f"{off_s:.0f} s" if off_s < _MINUTE_S else in_words(off_s)
    taken = f"at most {CLOCK_AHEAD_S} s ahead and {CLOCK_BEHIND_S} s behind are taken"
    way = "ahead of" if ahead_s > 0 else "behind"
    return f"this device's clock is {span} {way} the server's ({taken}); set it"


def _code(response: httpx.Response) -> int | None:
    """Return the code of Flower's that an error carries, if it is one of Flower's."""
    try:
        said = response.json()
    except ValueError:
        return None
    return said.get("code") if isinstance(said, dict) else None
