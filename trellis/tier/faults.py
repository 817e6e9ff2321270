"""What a service makes of an error in its work on one task, which the other tasks must not feel."""

from __future__ import annotations

import asyncio

from trellis.errors import Refused, Unavailable, in_one_line, leaves
from trellis.payloads import Reason


def may_pass(error: Exception) -> bool:
    """Whether it is the disk's or a neighbour's, and another try may go well."""
    return all(isinstance(one, Unavailable | OSError) for one in leaves(error))


def pass_on(error: Exception) -> None:
    """Raise what is not of one task, though its work has met it.

    Raises:
        CancelledError: The work is cancelled: before Python 3.13 a group's errors hide that.
        Exception: `error`; the broker denies us a topic, and the service ends by that.
    """
    work = asyncio.current_task()
    if work is not None and work.cancelling():
        raise asyncio.CancelledError from error
    if any(isinstance(one, Refused) and one.code == "broker" for one in leaves(error)):
        raise error


def own_fault(whose: str, error: Exception) -> Reason:
    """Return why a task ends by an error that nobody foresaw, in the service that is called so."""
    return Reason(code="internal", message=f"a fault of the {whose}'s own, see its log: {in_one_line(error)}")
