"""A task whose rounds an app runs: what its supervision, and the backchannel, must know of it."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Protocol

from trellis.errors import Refused
from trellis.flower.backchannel import Brief, Hello, RoundRecord, StateReport, Uplink
from trellis.payloads import Round, TaskState
from trellis.tier.app_process import AppProcess
from trellis.tier.fleet import TaskFleet

logger = logging.getLogger(__name__)


class RunWatch:
    """Which run of a task's app is due, its process once it has said hello, and when it was last heard.

    Attributes:
        app: The app that said hello for the present run.
    """

    def __init__(self, task: str) -> None:
        self._task = task
        self._run: int | None = None
        self._heard = 0.0
        self._changed = asyncio.Event()
        self.app: AppProcess | None = None

    def meet(self, hello: Hello) -> None:
        """Take an app's first word.

        Raises:
            Refused: Another run is due, or there is no such process.
        """
        if self._run is not None and hello.run_id != self._run:
            raise Refused("run", f"task {self._task!r}: run {hello.run_id} came, due is run {self._run}")
        self.app = AppProcess.of(hello)
        logger.info("task=%s run=%d pid=%d: the app is there", self._task, hello.run_id, hello.pid)
        self.notify()

    def beat(self) -> None:
        """Note that the app lives: it has asked or said something."""
        self._heard = time.monotonic()

    @property
    def silent_s(self) -> float:
        """How long the app has neither asked nor said anything."""
        return time.monotonic() - self._heard

    def expect(self, run_id: int | None) -> AppProcess | None:
        """Take a hello from this run alone, or from any (None) while it is not known yet.

        Return the app of another run that was there, which is to be ended.
        """
        self._run = run_id
        app = self.app
        if app is None or app.run_id == run_id:
            return None
        self.app = None
        return app

    def notify(self) -> None:
        """Wake whoever waits for a change."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def wait_change(self, timeout_s: float) -> None:
        """Return when the app is there, the task was called off or has ended, or in `timeout_s`."""
        changed = self._changed
        try:
            async with asyncio.timeout(timeout_s):
                await changed.wait()
        except TimeoutError:
            return


class SupervisedTask(Protocol):
    """A task that `trellis.tier.supervision` keeps an app on."""

    @property
    def name(self) -> str: ...

    @property
    def ended(self) -> bool:
        """Whether nothing more follows."""

    @property
    def canceled(self) -> bool:
        """Whether the operator called it off."""

    @property
    def rounds_done(self) -> int:
        """The last finished round: an app that finishes another has not been started in vain."""

    @property
    def runs(self) -> RunWatch: ...

    async def end(self, state: TaskState, code: str, message: str) -> None:
        """End the task for a reason that its app could not give."""

    async def recovers(self, why: str) -> None:
        """Say that its app has gone, and why: another is to go on where it was."""

    async def was_disk_full(self) -> bool:
        """Whether the disk kept the app from working; returns once it no longer does."""


class AppTask(Protocol):
    """A task as its app's backchannel reaches it."""

    @property
    def runs(self) -> RunWatch: ...

    @property
    def fleet(self) -> TaskFleet: ...

    def meet(self, hello: Hello) -> Brief:
        """Take an app's first word, and tell it what to do."""

    async def announce(self, round: Round) -> None: ...

    async def finish_round(self, finished: RoundRecord) -> None: ...

    async def report(self, report: StateReport) -> None: ...


class MemberTask(AppTask, Protocol):
    """A region's task: its app is a member of the tier above."""

    async def uplink(self, news: Uplink) -> None:
        """Say on MQTT what its app has done there; returns once it is said, or queued."""
