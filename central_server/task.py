"""One task at the server, alive: what happens to it is stored first, then remembered, then published."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from central_server.papers import write_papers
from central_server.publisher import Publisher
from central_server.scalars import Scalars
from central_server.store import METRICS, REPORT, SUMMARY, Store, StoredTask, TaskRecord
from central_server.summary import standing_of
from trellis.descriptor import TaskDescriptor
from trellis.envelope import Envelope
from trellis.errors import Refused, Unavailable
from trellis.flower.backchannel import Brief, Hello, RoundRecord, StateReport
from trellis.payloads import Reason, Round, RoundPhase, TaskState, now_ms
from trellis.tier.disk import RETRY_S, Disk
from trellis.tier.fleet import TaskFleet
from trellis.tier.headline import headline
from trellis.tier.history import read_content, read_last_round, rounds_in
from trellis.tier.running import RunWatch

logger = logging.getLogger(__name__)


class ServerTask:
    """A task from its posting to its end, and the ServerApp that works on it.

    Attributes:
        runs: The run of its ServerApp, and the process behind it.
        disk: Its folder; a write that fails raises `Unavailable`, and leaves the task as it was.
        fleet: The devices that have an execution of the task.
    """

    def __init__(
        self, stored: StoredTask, store: Store, publisher: Publisher, data: Mapping[str, str]
    ) -> None:
        self._stored, self._store, self._publisher = stored, store, publisher
        self._data = data
        self._round: Round | None = None
        self._writing = asyncio.Lock()
        self._closed = False
        self._scalars = Scalars(self.folder)
        self.disk = Disk(self.name, self.folder)
        self.runs = RunWatch(self.name)
        descriptor = stored.descriptor
        regional = [region for region in descriptor.regions if descriptor.tier_of(region) == "regional"]
        self.fleet = TaskFleet(self.name, descriptor.regions, regional=regional)
        if self.canceled:
            self.fleet.cancel()

    @property
    def name(self) -> str:
        """The task's identifier."""
        return self._stored.descriptor.task

    @property
    def descriptor(self) -> TaskDescriptor:
        """The descriptor of the newest revision."""
        return self._stored.descriptor

    @property
    def record(self) -> TaskRecord:
        """Its state."""
        return self._stored.record

    async def history(self) -> list[RoundRecord]:
        """Return the finished rounds in order, from the disk: they grow with the devices.

        Raises:
            Unavailable: They cannot be read.
        """
        async with self._writing:  # or the last might be half there
            done = self.record.round
            content = await self.disk.read(self._metrics, read_content)
        return await asyncio.to_thread(rounds_in, content, self._metrics, done)

    async def last_round(self) -> RoundRecord | None:
        """Return the last finished round, None if there is none; raises as `history`."""
        async with self._writing:
            return await self._last_round(self.record.round)

    async def standing(self) -> Round:
        """Return where its rounds stand, by the ServerApp, or while that is silent by what is stored.

        Raises:
            Unavailable: The last round cannot be read.
        """
        if not self.ended:
            return self._round or standing_of(self.record, None)
        standing = self._round or standing_of(self.record, await self.last_round())
        if standing.phase is not RoundPhase.DONE:
            # Newer than what the ServerApp announced, or a gateway would pass over it.
            ts = max(standing.ts + 1, self.record.since)
            standing = standing.model_copy(update={"phase": RoundPhase.DONE, "ts": ts})
        self._round = standing
        return standing

    @property
    def folder(self) -> Path:
        """Where its files lie."""
        return self._store.folder(self.name)

    @property
    def canceled(self) -> bool:
        """Whether the operator called it off."""
        return self.descriptor.desired == "canceled"

    @property
    def ended(self) -> bool:
        """Whether nothing more follows."""
        return self.record.state.ended

    async def stage(self) -> None:
        """Write a task that has just come, not yet in its place."""
        await self.disk.write(lambda: self._store.stage(self._stored))

    async def install(self, ended: int | None) -> None:
        """Put it in its place, and aside the run that ended under this revision; from now on it is stored."""
        await self.disk.write(lambda: self._store.install(self.name, ended))

    async def mend(self) -> None:
        """Write what a kill at the task's very end kept an earlier server from writing."""
        if self.ended and not all((self.folder / name).is_file() for name in (SUMMARY, REPORT)):
            await self._write_papers(self.record, missing=True)

    async def show(self) -> None:
        """Publish its state."""
        await self._publisher.task_state(self.record.public())

    async def call_off(self, envelope: Envelope, descriptor: TaskDescriptor) -> None:
        """Store the revision that calls the task off, and let the ServerApp know."""
        async with self._writing:
            record = self.record.model_copy(update={"revision": descriptor.revision})
            stored = replace(self._stored, envelope=envelope, descriptor=descriptor, record=record)
            await self.disk.write(lambda: self._store.save(stored))
            self._stored = stored
        logger.info("task=%s revision=%d: called off", self.name, descriptor.revision)
        self.fleet.cancel()
        self.runs.notify()
        await self._publisher.task_state(self.record.public())

    @property
    def rounds_done(self) -> int:
        """The last finished round."""
        return self.record.round

    def meet(self, hello: Hello) -> Brief:
        """Take a ServerApp's first word, and tell it what to do.

        Raises:
            Refused: Another run is due, the task has ended, or there is no such process.
        """
        if self.ended:
            raise Refused("run", f"task {self.name!r} is {self.record.state}: nothing is left to do")
        self.runs.meet(hello)
        return Brief(
            descriptor=self.descriptor.to_json(),
            folder=str(self.folder),
            data=self._data.get(self.descriptor.data.name),
        )

    async def recovers(self, why: str) -> None:
        """Say that its ServerApp has gone, and why; another goes on after the last finished round."""
        reason = Reason(code="recovering", message=f"{why}: another ServerApp is started, and goes on")
        try:
            await self.report(StateReport(state=self.record.state, reason=reason))
        except Unavailable as error:
            logger.error("task=%s: %s", self.name, error)

    async def was_disk_full(self) -> bool:
        """Whether a full disk, or one that gives no checkpoint, kept the ServerApp from working."""
        return await self.disk.wait_usable(lambda: self.ended or self.canceled)

    async def announce(self, round: Round) -> None:
        """Publish where the rounds stand, at once: devices wait for it."""
        self._round = round
        await self._publisher.round(self.name, round)

    async def finish_round(self, finished: RoundRecord) -> None:
        """Keep a finished round; one that is kept already, as a resumed app reports it, changes nothing."""
        async with self._writing:
            number = finished.round
            if self.record.round >= number and await self._last_round(number) == finished:
                return
            await self.disk.write(lambda: self._keep_round(finished))
            metrics = _measured(finished)
            round = max(self.record.round, finished.round)
            await self._replace(self.record.model_copy(update={"round": round, "metrics": metrics}))
        logger.info(
            "task=%s round=%d/%d loss=%s accuracy=%s replied=%d/%d failed=%d in %.2f s",
            self.name,
            finished.round,
            self.record.rounds,
            _shown(finished.loss),
            _shown(finished.accuracy),
            finished.replied,
            finished.selected,
            finished.failed,
            finished.duration_s,
        )
        await self._publisher.task_state(self.record.public())

    async def report(self, report: StateReport) -> None:
        """Take in what the ServerApp says of the task's state.

        Nothing is taken after the task's end, nor once the service is ending: then an app fails because its
        SuperLink leaves, and the task goes on at the next start.
        """
        async with self._writing:
            same = (report.state, report.reason) == (self.record.state, self.record.reason)
            if self.ended or self._closed or (same and not report.metrics):
                return
            since = self.record.since if report.state == self.record.state else now_ms()
            metrics = {**self.record.metrics, **headline(report.metrics), **report.metrics}
            said = {"state": report.state, "since": since, "reason": report.reason, "metrics": metrics}
            record = self.record.model_copy(update=said)
            if report.state.ended:
                # Before the state: whoever reads of the end finds its summary.
                await self._write_papers(record)
            await self._replace(record)
        logger.info(
            "task=%s state=%s %s", self.name, report.state, report.reason.message if report.reason else ""
        )
        self.runs.notify()
        await self._publisher.task_state(self.record.public())

    async def end(self, state: TaskState, code: str, message: str) -> None:
        """End the task for a reason that the ServerApp could not give, as soon as its disk takes that."""
        report = StateReport(state=state, reason=Reason(code=code, message=message))
        while True:
            try:
                await self.report(report)
            except Unavailable:
                await asyncio.sleep(RETRY_S)
            else:
                return

    async def clear(self) -> None:
        """Remove its topics."""
        await self._publisher.clear(self.name)

    def close(self) -> None:
        """Let go whoever waits for its fleet, and its open files; the service is ending."""
        self._closed = True
        self.fleet.close()
        self._scalars.close()

    async def _replace(self, record: TaskRecord) -> None:
        record = record.model_copy(update={"ts": now_ms()})
        await self.disk.write(lambda: self._store.save_record(record))
        self._stored = replace(self._stored, record=record)

    def _keep_round(self, finished: RoundRecord) -> None:
        self._store.append_round(self.name, finished)
        self._scalars.write(finished)

    async def _last_round(self, done: int) -> RoundRecord | None:
        if not done:
            return None
        return await self.disk.read(self._metrics, lambda path: read_last_round(path, done))

    @property
    def _metrics(self) -> Path:
        return self.folder / METRICS

    async def _write_papers(self, record: TaskRecord, *, missing: bool = False) -> None:
        devices = self.fleet.view.devices

        def write() -> None:
            self._scalars.close()
            write_papers(self.folder, record, self.descriptor, devices, missing=missing)

        await self.disk.write(write)


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _measured(finished: RoundRecord) -> dict[str, float]:
    named = {"loss": finished.loss, "accuracy": finished.accuracy}
    measured = {name: value for name, value in named.items() if value is not None}
    return {**headline(finished.metrics), **finished.metrics, **measured}
