"""What a server's refusal, its silence and a full disk mean to a Flower client: one of our errors each.

FlowerLink.connect / pull / push
├── Unavailable         the server does not answer, or does not know this node any more: connect again
├── DiskFailed          a message, or who we are, cannot be kept: the disk is full
├── Refused "reply"     the SuperLink did not take a reply (the run is over, or it took an error instead)
└── Refused "link"      the server refuses this device
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from flwr.supercore.inflatable.inflatable_utils import ObjectPullError, ObjectPushError

from trellis.errors import DiskFailed, Refused, Unavailable
from trellis.flower.device_headers import FLEET_RUN_STATUS_NOT_ALLOWED

_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO}
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
            raise Refused("link", f"{address} refuses this device: {said}") from error
        raise Unavailable(f"{address} does not serve this node: {said}") from error
    except (httpx.TransportError, OSError, ObjectPullError, ObjectPushError, ValueError) as error:
        if isinstance(error, OSError) and error.errno in _DISK:
            raise DiskFailed(f"{folder} cannot be written: {error.strerror}; free space there") from error
        raise Unavailable(f"{address} does not answer: {error or type(error).__name__}") from error


def untaken(address: str, answered: str = "") -> Refused:
    """Return the error of a reply that the SuperLink at `address` did not take."""
    of = f" to message {answered[:8]}" if answered else ""
    return Refused("reply", f"{address} did not take the reply{of}: its run is over")


def _code(response: httpx.Response) -> int | None:
    """Return the code of Flower's that an error carries, if it is one of Flower's."""
    try:
        said = response.json()
    except ValueError:
        return None
    return said.get("code") if isinstance(said, dict) else None
