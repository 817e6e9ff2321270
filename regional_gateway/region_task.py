"""One task of a region that aggregates: its rounds here, and its part in the tier above.

To the region's devices it is what a task is to them at the centre; to the tier above it is a member, as a
device is, and says so on one execution.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from regional_gateway.telling import Telling
from regional_gateway.turn import Turn
from trellis.descriptor import TaskDescriptor
from trellis.errors import Refused, Unavailable
from trellis.execution import ENDED, ExecutionReport, central_end
from trellis.flower.backchannel import Above, Brief, Hello, RoundRecord, StateReport, Uplink
from trellis.payloads import ExecutionState, Phase, Reason, Round, TaskState
from trellis.tier.disk import RETRY_S, Disk
from trellis.tier.fleet import TaskFleet
from trellis.tier.history import append_round
from trellis.tier.running import RunWatch

logger = logging.getLogger(__name__)

ROUNDS = "rounds.jsonl"

KEPT = 100
"""Rounds in memory: each names all who took part. All of them stand in the run's folder."""


@dataclass(frozen=True)
class Ending:
    """How the task ended for this region."""

    state: ExecutionState
    reason: Reason | None = None
    revision: int | None = None


class RegionTask:
    """A task from its posting to its end in this region, and the app that runs its rounds.

    Args:
        descriptor: Of the revision that runs.
        region: This region.
        folder: Where the run's checkpoints and history lie.
        history: The rounds that were finished before.
        report: Says its execution.
        above: How its app reaches the tier above.
        say: Publishes a round of the region's own.

    Attributes:
        runs: The run of its app, and the process behind it.
        fleet: Its members.
    """

    def __init__(
        self,
        descriptor: TaskDescriptor,
        *,
        region: str,
        folder: Path,
        history: Iterable[RoundRecord] = (),
        report: ExecutionReport,
        above: Callable[[], Above],
        say: Callable[[Round], Awaitable[None]],
    ) -> None:
        self.descriptor, self._region, self._folder = descriptor, region, folder
        self._report, self._above, self._say = report, above, say
        regional = [one for one in descriptor.regions if descriptor.tier_of(one) == "regional"]
        self.fleet = TaskFleet(descriptor.task, descriptor.regions, regional=regional, here=region)
        self.runs = RunWatch(descriptor.task)
        minimum = descriptor.participants_at(region).minimum
        self._turn = Turn(report, self.fleet, minimum=minimum)
        self._telling = Telling(report, self._turn)
        self._disk = Disk(descriptor.task, folder)
        self._history: dict[int, RoundRecord] = {}
        for record in history:
            self._remember(record)
        self._writing = asyncio.Lock()
        self._canceled_by: int | None = None
        self._closed = False
        self._over = asyncio.Event()
        self._ending = self._ended_before()
        if self._ending is not None:
            self._over.set()

    @property
    def name(self) -> str:
        """The task's identifier."""
        return self.descriptor.task

    @property
    def revision(self) -> int:
        """The revision that runs."""
        return self.descriptor.revision

    @property
    def history(self) -> tuple[RoundRecord, ...]:
        """The region's last finished rounds, at most `KEPT`, in order."""
        return tuple(self._history[number] for number in sorted(self._history))

    @property
    def rounds_done(self) -> int:
        """The last finished round."""
        return max(self._history, default=0)

    @property
    def ended(self) -> bool:
        """Whether nothing more follows."""
        return self._ending is not None

    @property
    def canceled(self) -> bool:
        """Whether the operator called it off."""
        return self._canceled_by is not None

    async def wait_ended(self) -> None:
        """Return once nothing more follows."""
        await self._over.wait()

    async def begin(self) -> None:
        """Say that the task waits for its app, or for a disk that takes what it does."""
        if self.ended:
            return
        await self._report.queued(self.revision)
        refusal = ""
        while not self.ended:
            try:
                await self._disk.write(lambda: self._folder.mkdir(mode=0o700, parents=True, exist_ok=True))
            except Unavailable as error:
                if str(error) != refusal:
                    refusal = str(error)
                    await self._report.waits(Reason(code="disk", message=refusal))
                await asyncio.sleep(RETRY_S)
            else:
                await self._report.phase(Phase.CONNECTING)
                return

    async def follow_members(self) -> None:
        """Show the task as queued while its members do another first; see `Turn`."""
        await self._turn.follow(lambda: self.ended or self._closed)

    async def trouble(self, problem: str) -> None:
        """Say why its app does not run."""
        if not self.ended:
            await self._telling.connecting(Reason(code="superlink", message=problem))

    def cancel(self, revision: int) -> None:
        """Let the app know that the operator called the task off."""
        self._canceled_by = revision
        self.fleet.cancel()
        self.runs.notify()

    async def expire_in_time(self) -> None:
        """End it once its time is over."""
        while self.left_s > 0:  # noqa: ASYNC110 - a clock, and no event
            await asyncio.sleep(min(self.left_s, 3600.0))
        self.expire()

    def expire(self) -> None:
        """End it, as its time is over."""
        message = f"the task expired at {self.descriptor.expires_at.isoformat()}"
        self._end(Ending(ExecutionState.TIMED_OUT, Reason(code="expired", message=message)))

    def end_centrally(self, state: TaskState) -> None:
        """End it with the server's task."""
        self._end(Ending(*central_end(state)))

    async def end(self, state: TaskState, code: str, message: str) -> None:
        """End it for a reason that its app could not give."""
        if state is TaskState.CANCELED and self._canceled_by is not None:
            message = f"the operator called the task off with revision {self._canceled_by}"
        self._end(Ending(ENDED[state], Reason(code=code, message=message), self._canceled_by))

    async def recovers(self, why: str) -> None:
        """Say that its app has gone, and why; another goes on after the last finished round."""
        if not (self.ended or self._closed):
            await self._telling.recovers(why)

    async def was_disk_full(self) -> bool:
        """Whether a full disk, or one that gives no checkpoint, kept the app from working."""
        return await self._disk.wait_usable(lambda: self.ended or self.canceled)

    async def settle(self) -> None:
        """Say its end, once nothing of its app follows; what has not begun here has no end either."""
        ending, said = self._ending, self._report.execution
        if ending is not None and said is not None and not said.state.ended:
            await self._report.end(ending.state, ending.reason, revision=ending.revision)
            why = f": {ending.reason.message}" if ending.reason else ""
            logger.info("task=%s: %s%s", self.name, ending.state.value, why)

    def close(self) -> None:
        """Let go whoever waits for its fleet; the gateway is ending, the task goes on at the next start."""
        self._closed = True
        self.fleet.close()

    def meet(self, hello: Hello) -> Brief:
        """Take an app's first word, and tell it what to do.

        Raises:
            Refused: Another run is due, the task has ended, or there is no such process.
        """
        if self.ended:
            raise Refused("run", f"task {self.name!r} has ended in region {self._region!r}: nothing is left")
        self.runs.meet(hello)
        self._telling.came()
        return Brief(
            descriptor=self.descriptor.to_json(),
            folder=str(self._folder),
            region=self._region,
            above=self._above(),
        )

    async def announce(self, round: Round) -> None:
        """Publish where the region's own rounds stand, at once: devices wait for it."""
        await self._say(round)

    async def finish_round(self, finished: RoundRecord) -> None:
        """Keep a finished round; one that is kept already, as a resumed app reports it, changes nothing."""
        if self._history.get(finished.round) == finished:
            return
        async with self._writing:
            await self._disk.write(lambda: append_round(self._folder / ROUNDS, finished))
            self._remember(finished)
        logger.info(
            "task=%s regional round=%d replied=%d/%d failed=%d in %.2f s",
            self.name, finished.round, finished.replied, finished.selected, finished.failed,
            finished.duration_s,
        )  # fmt: skip

    async def report(self, report: StateReport) -> None:
        """Take in what the app says of the region's state; its end is the region's, not the task's."""
        if self.ended or self._closed:
            return
        if report.state.ended:
            revision = self._canceled_by if report.state is TaskState.CANCELED else None
            self._end(Ending(ENDED[report.state], report.reason, revision))
            return
        await self._telling.waits(report.reason)

    async def uplink(self, news: Uplink) -> None:
        """Say what the app has done as a member of the tier above; returns once it is said, or queued."""
        if not self.ended:  # nothing follows an end
            await self._telling.uplink(news)

    @property
    def left_s(self) -> float:
        """Seconds until it expires."""
        return (self.descriptor.expires_at - datetime.now(UTC)).total_seconds()

    def _remember(self, finished: RoundRecord) -> None:
        self._history[finished.round] = finished
        while len(self._history) > KEPT:
            del self._history[min(self._history)]

    def _end(self, ending: Ending) -> None:
        if self._ending is None:
            self._ending = ending
            self.fleet.end()
            self.runs.notify()
            self._over.set()

    def _ended_before(self) -> Ending | None:
        said = self._report.execution
        if said is None or not said.state.ended or said.revision < self.revision:
            return None
        return Ending(said.state, said.reason, said.revision)
