"""What is said while a task waits for devices: who is here, how many are due, and until when it waits."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from trellis.flower.backchannel import StateReport
from trellis.flower.checkin import Member
from trellis.payloads import Reason, TaskState

_NAMED = 20


def counted(minimum: int, members: Sequence[Member]) -> str:
    """Return how many devices are due, and who of them is here."""
    here = ", ".join(member.name for member in members[:_NAMED]) or "none"
    return f"{minimum} members, {len(members)} are here ({here})"


def gathering(number: int, minimum: int, members: Sequence[Member], left_s: float) -> StateReport:
    """Return the state of a task that gathers devices for a round, and fails in `left_s` without them."""
    if len(members) >= minimum:
        return StateReport(state=TaskState.GATHERING)
    until = datetime.now(UTC) + timedelta(seconds=left_s)
    due = counted(minimum, members)
    return _waiting(
        TaskState.GATHERING, f"round {number} waits for {due}; the task fails at {_clock(until)} without"
    )


def running(waiting: str | None) -> StateReport:
    """Return the state of a task in mid-round, and for whom it waits, if it does."""
    return StateReport(state=TaskState.RUNNING) if waiting is None else _waiting(TaskState.RUNNING, waiting)


def _waiting(state: TaskState, message: str) -> StateReport:
    return StateReport(state=state, reason=Reason(code="waiting", message=message[:2000]))


def _clock(moment: datetime) -> str:
    return f"{moment:%H:%M:%S} UTC"
