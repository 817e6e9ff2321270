"""What a service makes of an error in its work on one task, which the other tasks must not feel."""

from __future__ import annotations

from trellis.errors import Unavailable, in_one_line, leaves
from trellis.payloads import Reason


def may_pass(error: Exception) -> bool:
    """Whether it is the disk's or a neighbour's, and another try may go well."""
    return all(isinstance(one, Unavailable | OSError) for one in leaves(error))


def own_fault(whose: str, error: Exception) -> Reason:
    """Return why a task ends by an error that nobody foresaw, in the service that is called so."""
    return Reason(code="internal", message=f"a fault of the {whose}'s own, see its log: {in_one_line(error)}")
