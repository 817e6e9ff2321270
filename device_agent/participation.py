"""One task on this device, from its turn to its end.

The event loop keeps MQTT going and says when to wake up or to end; one thread of the task's own opens the
model, trains, and talks to Flower. Nothing else of a task runs anywhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeAlias

from flwr.app import Context, Message, RecordDict

from device_agent.client_app import build_client_app
from device_agent.eligibility import Believed, Means, artefact_fronts, reason_of, server_of
from device_agent.fetching import Fetcher
from device_agent.journal import Journal
from device_agent.reporting import TaskReport
from device_agent.settings import DeviceSettings
from device_agent.telling import Teller
from device_agent.trainer import Trainer
from device_agent.turns import Turns
from models.backends import artefact_runtime, available_backends
from models.datasets import Dataset
from models.registry import model_names
from trellis.artefacts.store import ArtefactStore
from trellis.errors import ArtefactError, DiskFailed, InvalidInput, MissingExtra, Refused, TrellisError
from trellis.flower.link_loop import Halt, Link, LinkLoop, Pace
from trellis.flower.questions import Membership
from trellis.memory import give_back_free_memory
from trellis.payloads import ExecutionState, Phase, Reason, Round

__all__ = ["Device", "Ending", "Link", "LinkFactory", "Participation"]

logger = logging.getLogger(__name__)

STOP_S = 30.0
"""How long a task's thread may take to stop: one batch, or one request to a server that is gone."""

LinkFactory: TypeAlias = Callable[[str, Path], Link]
"""Makes the link to a server: its address, and the folder of its node key and inbox."""


@dataclass(frozen=True)
class Device:
    """What every task on this device works with."""

    settings: DeviceSettings
    data: Dataset
    journal: Journal
    make_link: LinkFactory
    pace: Pace
    turns: Turns = field(default_factory=Turns)

    def means(self) -> Means:
        """Return what it has to take part with."""
        settings = self.settings
        return Means(
            servers=settings.servers,
            tls=settings.tls is not None,
            models=None if artefact_runtime(settings.backend) else tuple(model_names()),
            backend=settings.backend,
            backends=tuple(available_backends()),
        )


@dataclass(frozen=True)
class Ending:
    """How a task ended on this device.

    Without a state it goes on under a new revision. `QUEUED` is no end: it gives way to another, and its turn
    comes again.
    """

    state: ExecutionState | None
    reason: Reason | None = None
    revision: int | None = None


class Participation:
    """One believed task, taken part in until it ends."""

    def __init__(self, task: Believed, *, device: Device, report: TaskReport) -> None:
        self._descriptor = task.descriptor
        self._server = server_of(task, device.settings.region)
        self._fronts = artefact_fronts(task, self._server, device.settings.servers)
        self._digest = task.digest
        self._device = device
        self._report = report
        self._halt = Halt()
        self._teller = Teller(asyncio.get_running_loop(), report)
        self._called: Ending | None = None
        self._ending: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._announced: int | None = None
        self._step: tuple[int, str] | None = None

    def round_changed(self, round_: Round) -> None:
        """Pull soon, if messages were sent since; where they are not counted, if the phase changed."""
        step = (round_.round, round_.phase.value)
        sent = round_.announced != self._announced if round_.announced else step != self._step
        self._announced, self._step = round_.announced, step
        if sent:
            self._halt.wake()

    def end(self, ending: Ending) -> None:
        """Stop at the next batch and end so; the first ending counts, unless it only gave way.

        A new revision comes before all that was not said yet: the execution is its own from here on.
        """
        if self._called is None or self._called.state is ExecutionState.QUEUED or ending.state is None:
            self._called = ending
        if ending.state is None:
            self._teller.hush()
        if not self._ending.done():
            self._ending.set_result(None)

    async def run(self) -> Ending:
        """Return when the task has ended here, which its execution then shows, and its thread is gone.

        Until then it holds the server's node key and inbox, which the next task may need. Canceled, it stops
        at the next batch and leaves the task unfinished, to go on at the next start.
        """
        await self._report.phase(Phase.VERIFYING)
        finished = self._start_thread()
        try:
            ending = await self._ended(finished)
        except asyncio.CancelledError:
            self._halt.call(task_ended=False)
            if not await _stopped(finished):
                logger.error("the task's thread did not stop within %g s; it is left behind", STOP_S)
            raise
        self._halt.call(task_ended=True)
        stopped = await _stopped(finished)
        self._teller.hush()  # nothing follows an end
        ending = await self._say(self._called or ending)  # it may have been called off while it gave way
        while not stopped:
            logger.warning(
                "task %s has ended, its last batch has not: the next task waits", self._descriptor.task
            )
            stopped = await _stopped(finished)
        if ending.state is ExecutionState.QUEUED and self._called is not None and self._called is not ending:
            ending = await self._say(self._called)  # or after it had
        return ending

    async def _say(self, ending: Ending) -> Ending:
        if ending.state is not None:
            await self._report.end(ending.state, ending.reason, revision=ending.revision)
            logger.info(
                "task %s: %s%s",
                self._descriptor.task,
                ending.state.value,
                f": {ending.reason.message}" if ending.reason else "",
            )
        return ending

    async def _ended(self, finished: asyncio.Future[None]) -> Ending:
        expires_s = (self._descriptor.expires_at - datetime.now(UTC)).total_seconds()
        waiting: set[asyncio.Future[Any]] = {finished, self._ending}
        await asyncio.wait(waiting, timeout=max(0.0, expires_s), return_when=asyncio.FIRST_COMPLETED)
        if self._called is not None:
            return self._called
        if not finished.done():
            message = f"the task expired at {self._descriptor.expires_at.isoformat()}"
            return Ending(ExecutionState.TIMED_OUT, Reason(code="expired", message=message))
        error = finished.exception()
        if isinstance(error, Refused | InvalidInput | MissingExtra | DiskFailed):
            logger.error("task %s is rejected: %s", self._descriptor.task, error)
            return Ending(ExecutionState.REJECTED, reason_of(error))
        logger.error("task %s: its thread broke", self._descriptor.task, exc_info=error)
        code = reason_of(error).code if isinstance(error, TrellisError) else "internal"
        message = str(error) if isinstance(error, TrellisError) else f"{type(error).__name__}: {error}"
        return Ending(ExecutionState.FAILED, Reason(code=code, message=message))

    def _start_thread(self) -> asyncio.Future[None]:
        loop = asyncio.get_running_loop()
        finished: asyncio.Future[None] = loop.create_future()

        def settle(error: BaseException | None) -> None:
            if finished.done():
                return
            if error is None:
                finished.set_result(None)
            else:
                finished.set_exception(error)

        def work() -> None:
            error: BaseException | None = None
            try:
                self._work()
            except BaseException as raised:  # noqa: BLE001 - handed on to the event loop
                error = raised
            # The loop is closed where the thread was left behind.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(settle, error)

        # A daemon: a request that hangs on a dead server must not keep the process from ending.
        # In this context: what it logs is this device's.
        threading.Thread(
            target=contextvars.copy_context().run,
            args=(work,),
            name=f"task {self._descriptor.task}",
            daemon=True,
        ).start()
        return finished

    def _work(self) -> None:
        artefact = self._fetch()
        try:
            trainer = self._open_trainer(artefact)
            give_back_free_memory()  # of importing a runtime, and of what it made of the model
            self._train(trainer)
        except ArtefactError:
            if artefact is not None:
                artefact.unlink(missing_ok=True)  # nobody shall find it again
            raise

    def _train(self, trainer: Trainer) -> None:
        """Return when the thread is called off.

        Raises:
            ArtefactError: It was not the model's; the server has been answered so.
        """
        settings, descriptor = self._device.settings, self._descriptor
        tier = descriptor.tier_of(settings.region)
        app = build_client_app(
            Membership(
                descriptor.task, descriptor.revision, self._digest, tier, settings.region, settings.name
            ),
            trainer,
            answers=self._device.journal,
            observer=self._teller,
            turns=self._device.turns,
            should_stop=lambda: self._halt.called,
        )

        def answer(message: Message, node_id: int) -> Message:
            run_id = message.metadata.run_id
            reply = app(message, Context(run_id, node_id, {}, RecordDict(), {}))
            if trainer.misfit is not None:
                self._halt.call(task_ended=True)  # what was asked is answered yet
            return reply

        address = self._server
        self._teller.connecting(f"connecting to {address}", failed=False)
        folder = settings.state / "flower" / address.replace(":", "_").strip("[]")
        link = self._device.make_link(address, folder)
        LinkLoop(link, answer, events=self._teller, halt=self._halt, pace=self._device.pace).run()
        if trainer.misfit is not None:
            raise trainer.misfit

    def _fetch(self) -> Path | None:
        """Return what is trained from once it is here; None where the backend builds the model itself."""
        settings = self._device.settings
        runtime = artefact_runtime(settings.backend)
        if runtime is None:
            return None
        store = ArtefactStore(settings.artefact_folder, limit=settings.artefact_bytes, holds=2)
        fetcher = Fetcher(store, tls=settings.tls, halt=self._halt, tell=self._teller.fetching)
        return fetcher.fetch(self._descriptor.task, runtime, self._fronts)

    def _open_trainer(self, artefact: Path | None) -> Trainer:
        settings = self._device.settings
        return Trainer.open(
            self._descriptor,
            self._device.data,
            backend=settings.backend,
            region=settings.region,
            device=settings.name,
            threads=settings.threads,
            artefact=artefact,
            artefact_bytes=settings.artefact_bytes,
        )


async def _stopped(finished: asyncio.Future[None]) -> bool:
    """Return whether a task's thread has ended within the time that it may take."""
    done, _ = await asyncio.wait({finished}, timeout=STOP_S)
    if done and (error := finished.exception()) is not None:
        logger.debug("the task's thread ended: %s", error)
    return bool(done)
