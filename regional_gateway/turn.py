"""Whether a region's members have come to a task, or do another one first: then so does the region."""

from __future__ import annotations

from collections.abc import Callable

from trellis.execution import ExecutionReport
from trellis.payloads import ExecutionState
from trellis.tier.fleet import TaskFleet

LOOK_S = 60.0


class Turn:
    """Shows a region's task as queued while too many of its members do another task first.

    The tier above then waits for the region as for a device that is queued, in place of asking it and
    running out of time.

    Args:
        report: Says the region's execution.
        fleet: Its members.
        minimum: How many of them a round needs.

    Attributes:
        queues: Whether the task is shown as queued for that reason.
    """

    def __init__(self, report: ExecutionReport, fleet: TaskFleet, *, minimum: int) -> None:
        self._report, self._fleet, self._minimum = report, fleet, minimum
        self._has_come = self.queues = False

    def came(self) -> None:
        """Note that the region is at work, whoever is here: its state follows its members no more."""
        self._has_come, self.queues = True, False

    async def follow(self, is_over: Callable[[], bool]) -> None:
        """Follow the members until the region has been at its minimum once, or the task is over."""
        version = 0
        while not (self._has_come or is_over()):
            view = await self._fleet.wait(version, LOOK_S)
            version = view.version
            states = [member.state for member in view.devices if member.online]
            here, queued = states.count(ExecutionState.IN_PROGRESS), states.count(ExecutionState.QUEUED)
            self._has_come = self._has_come or here >= self._minimum
            queues = not self._has_come and here + queued >= self._minimum
            if queues != self.queues and not is_over():
                self.queues = queues
                await self._report.queues(queues)
