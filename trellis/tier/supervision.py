"""Keeps a SuperLink running, and a ServerApp on every task that has not ended."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from trellis.errors import TrellisError
from trellis.payloads import TaskState
from trellis.tier.app_process import AppProcess
from trellis.tier.running import SupervisedTask

logger = logging.getLogger(__name__)

STARTS_AT_ONCE = 2
"""Apps that start at one time: each takes seconds of a processor, and ten at once all come too late."""

MAX_FRUITLESS = 3
"""Restarts in a row without a finished round between them; then the task fails."""

_LONGEST_PAUSE_S = 10.0
_STABLE_S = 30.0


@dataclass(frozen=True)
class RunTiming:
    """How long a service waits for an app and its SuperLink.

    Attributes:
        submit_s: For `flwr run` to answer.
        hello_s: For an app's first word; one that keeps silent longer counts as dead.
        beat_s: For its next word, which may be its poll for the fleet; likewise.
        watch_s: Between two looks at an app's process.
        cancel_s: For an app to end a task that was called off; then its run is stopped.
        leave_s: For an app to end after its task has; then its run is stopped.
    """

    submit_s: float = 60.0
    hello_s: float = 60.0
    beat_s: float = 45.0
    watch_s: float = 1.0
    cancel_s: float = 10.0
    leave_s: float = 20.0


class RunningSuperLink(Protocol):
    """What is used of `trellis.flower.superlink.SuperLink`."""

    @property
    def address(self) -> str: ...

    async def submit(self, app: Path, run_config: Mapping[str, str | int | float | bool]) -> int: ...

    async def stop_run(self, run_id: int) -> None: ...

    async def wait_ended(self) -> int: ...


OpenSuperLink = Callable[[], AbstractAsyncContextManager[RunningSuperLink]]


class SuperLinkKeeper:
    """Has a SuperLink running at all times: one that ends by itself is followed by another.

    Args:
        open_superlink: Starts one.
        on_started: Called with the address of each.

    Attributes:
        current: The one that runs.
        trouble: Why the last one ended by itself, or did not start; None if it did neither.
    """

    def __init__(self, open_superlink: OpenSuperLink, on_started: Callable[[str], None]) -> None:
        self._open, self._on_started = open_superlink, on_started
        self._started = asyncio.Event()
        self.current: RunningSuperLink | None = None
        self.trouble: str | None = None

    async def run(self) -> None:
        """Keep one running until canceled.

        Raises:
            TrellisError: The first did not start.
        """
        pause_s, first = 0.1, True
        while True:
            began = time.monotonic()
            try:
                async with self._open() as superlink:
                    self._on_started(superlink.address)
                    self.current, first = superlink, False
                    self.trouble = None
                    self._started.set()
                    try:
                        status = await superlink.wait_ended()
                    finally:
                        # At once: clearing up after it takes seconds.
                        self.current = None
                        self._started.clear()
                    self.trouble = f"it ended by itself with status {status}"
                    logger.error("the SuperLink ended by itself with status %d: it is started again", status)
            except (TrellisError, OSError) as error:
                self.trouble = str(error)
                if first:
                    raise
                logger.error("the SuperLink does not start: %s", error)
            pause_s = 0.1 if time.monotonic() - began > _STABLE_S else min(pause_s * 2, _LONGEST_PAUSE_S)
            await asyncio.sleep(pause_s)

    async def outlives(self, timeout_s: float) -> bool:
        """Whether the SuperLink of now still runs in `timeout_s`."""
        now = self.current
        await asyncio.sleep(timeout_s)
        return now is not None and self.current is now

    async def running(self) -> RunningSuperLink:
        """Return the SuperLink once there is one."""
        while self.current is None:
            await self._started.wait()
        return self.current


class Supervisor:
    """Drives tasks: a run of the ServerApp for each, and another when one dies."""

    def __init__(self, keeper: SuperLinkKeeper, app: Path, timing: RunTiming) -> None:
        self._keeper, self._app, self._timing = keeper, app, timing
        self._starts = asyncio.Semaphore(STARTS_AT_ONCE)

    async def drive(self, task: SupervisedTask) -> None:
        """Return when the task has ended and its ServerApp has left."""
        fruitless, why = 0, ""
        while not task.ended:
            superlink = await self._wait_superlink(task)
            if task.canceled:
                trouble = self._keeper.trouble if superlink is None else None
                down = "" if trouble is None else f" while the SuperLink was down: {trouble}"
                await task.end(TaskState.CANCELED, "canceled", f"called off by the operator{down}")
                return
            if superlink is None:
                continue  # the task has ended
            if fruitless > MAX_FRUITLESS:
                message = (
                    f"{fruitless} ServerApps in a row ended without a finished round; of the last: {why}"
                )
                await task.end(TaskState.FAILED, "app", message)
                return
            rounds = task.rounds_done
            why = await self._run_once(task, superlink) or "the task has ended"
            level = logging.INFO if task.ended else logging.WARNING
            logger.log(level, "task=%s: its run is over: %s", task.name, why)
            if not task.ended and await task.was_disk_full():
                continue  # what it did could not be kept: no fault of the app
            if self._keeper.current is superlink:
                fruitless = 1 if task.rounds_done > rounds else fruitless + 1

    async def _wait_superlink(self, task: SupervisedTask) -> RunningSuperLink | None:
        """Return the SuperLink once there is one; None: the task was called off, or has ended, before."""
        starting = asyncio.create_task(self._keeper.running(), name=f"superlink for {task.name}")
        try:
            while not (starting.done() or task.canceled or task.ended):
                await asyncio.wait({starting}, timeout=self._timing.watch_s)
            return starting.result() if starting.done() else None
        finally:
            starting.cancel()

    async def abandon(self, task: SupervisedTask) -> None:
        """See that no app of a task goes on that nobody drives any more."""
        await _end(task.runs.expect(None))

    async def _run_once(self, task: SupervisedTask, superlink: RunningSuperLink) -> str | None:
        """Return why the run ended before the task did, or None if the task has ended."""
        await _end(task.runs.expect(None))
        async with self._turn(task, superlink) as has_come:
            if not has_come:
                return "its turn to start had not come"
            try:
                async with asyncio.timeout(self._timing.submit_s):
                    run_id = await superlink.submit(self._app, {"task": task.name})
            except TimeoutError:
                return f"the SuperLink took no run within {self._timing.submit_s:g} s"
            except (TrellisError, OSError) as error:  # OSError: no room for its log
                await task.runs.wait_change(self._timing.watch_s)
                return f"the SuperLink took no run: {error}"
            logger.info("task=%s run=%d: submitted", task.name, run_id)
            await _end(task.runs.expect(run_id))
            # Canceled here, the service is ending, and the SuperLink takes its runs with it.
            hello_until = time.monotonic() + self._timing.hello_s
            while task.runs.app is None and time.monotonic() < hello_until:
                if task.ended or task.canceled or self._keeper.current is not superlink:
                    break
                await task.runs.wait_change(self._timing.watch_s)
        why = await self._watch(task, superlink, hello_until)
        if why is not None and not task.canceled:
            await task.recovers(why)
        await self._put_away(task, superlink, run_id, leave_s=self._timing.leave_s if why is None else 0.0)
        return why

    @contextlib.asynccontextmanager
    async def _turn(self, task: SupervisedTask, superlink: RunningSuperLink) -> AsyncIterator[bool]:
        """Wait for the task's turn to start an app; False: it was called off, or the SuperLink has ended."""
        acquiring = asyncio.create_task(self._starts.acquire(), name=f"turn of {task.name}")
        try:
            while not acquiring.done() and not task.canceled and self._keeper.current is superlink:
                await asyncio.wait({acquiring}, timeout=self._timing.watch_s)
            yield acquiring.done()
        finally:
            if not acquiring.cancel():  # it has it
                self._starts.release()

    async def _watch(
        self, task: SupervisedTask, superlink: RunningSuperLink, hello_until: float
    ) -> str | None:
        canceled_at: float | None = None
        while not task.ended:
            now, app = time.monotonic(), task.runs.app
            if self._keeper.current is not superlink:
                return "the SuperLink ended"
            if task.canceled:
                canceled_at = canceled_at or now
                if now - canceled_at >= self._timing.cancel_s:
                    return "it did not end when called off"
            if app is None:
                if now >= hello_until:
                    return f"it said nothing for {self._timing.hello_s:g} s (see apps.log)"
            elif not app.alive:
                return f"its process {app.pid} ended"
            elif task.runs.silent_s >= self._timing.beat_s:
                return f"its process {app.pid} said and asked nothing for {self._timing.beat_s:g} s: stuck"
            await task.runs.wait_change(self._timing.watch_s)
        return None

    async def _put_away(
        self, task: SupervisedTask, superlink: RunningSuperLink, run_id: int, *, leave_s: float
    ) -> None:
        """See that nothing of a run goes on; one whose task has ended may take `leave_s` to leave."""
        app = task.runs.app
        until = time.monotonic() + leave_s
        while app is not None and app.alive and time.monotonic() < until:  # noqa: ASYNC110 - no event tells
            await asyncio.sleep(0.1)
        task.runs.expect(None)
        if app is not None and not app.alive:
            return  # the SuperLink finds out by itself, in a minute; asking it would cost two seconds
        if self._keeper.current is superlink:
            with contextlib.suppress(TrellisError, OSError):  # a TimeoutError is one
                async with asyncio.timeout(self._timing.cancel_s):
                    await superlink.stop_run(run_id)
        await _end(app)


async def _end(app: AppProcess | None) -> None:
    if app is not None:
        await asyncio.to_thread(app.end)
