"""Brings what devices, gateways and the server say about a task into its log on disk."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from pathlib import Path
from types import TracebackType
from typing import Self

from central_server.logbook import (
    LOG,
    Logbook,
    LogLine,
    Source,
    Wanted,
    line_of,
    newest,
    shortened,
)
from trellis.errors import PayloadError
from trellis.mqtt import Bus, BusMessage
from trellis.payloads import Log, Reason, TaskStatus
from trellis.task_log import Dropped, LineHandler, untagged
from trellis.topics import Kind, Topics

logger = logging.getLogger(__name__)

_GATEWAY = "regional_gateway"
_REFUSED = "refused ("
OWN = ("central_server", "trellis.tier")
_GATHER_S = 0.1
_WAITING = 20_000
"""Lines that wait to be written: two seconds of a thousand devices at their most talkative."""


class LogKeeper:
    """Writes lines in batches, off the event loop; while it is entered, the server's own among them.

    Lines are no records of account: what a full disk or a flood costs is counted in the log, and no more.
    """

    def __init__(self, runs: Path) -> None:
        self._runs = runs
        self._books: dict[str, Logbook] = {}
        self._waiting: deque[tuple[str, LogLine]] = deque(maxlen=_WAITING)
        self._news = asyncio.Event()
        self._handler = _OwnLines(self)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._failing = False
        self.left_out = 0

    def __enter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        for name in OWN:
            logging.getLogger(name).addHandler(self._handler)
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        for name in OWN:
            logging.getLogger(name).removeHandler(self._handler)
        self._loop = None
        self._write(self._batch())

    def keep(self, task: str, line: LogLine) -> None:
        """Have a line written soon; any thread may call this, and it never blocks."""
        loop = self._loop
        if loop is None:
            return
        if len(self._waiting) == _WAITING:
            self.left_out += 1
        self._waiting.append((task, line))
        with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
            loop.call_soon_threadsafe(self._news.set)

    async def run(self) -> None:
        """Write what comes until canceled."""
        while True:
            await self._news.wait()
            await asyncio.sleep(_GATHER_S)
            self._news.clear()
            await asyncio.to_thread(self._write, self._batch())

    def _batch(self) -> dict[str, list[LogLine]]:
        batch: dict[str, list[LogLine]] = {}
        for _ in range(len(self._waiting)):
            task, line = self._waiting.popleft()
            batch.setdefault(task, []).append(line)
        return batch

    def _write(self, batch: dict[str, list[LogLine]]) -> None:
        for task, lines in batch.items():
            folder = self._runs / task
            if not folder.is_dir():
                continue  # said of a task that was not taken
            book = self._books.setdefault(task, Logbook(folder / LOG))
            try:
                book.append(lines)
                self._failing = False
            except OSError as error:
                # Not tagged with the task: the line could not be kept either.
                log = logger.debug if self._failing else logger.error
                self._failing = True
                log("log lines of %s are lost: %s", task, error)


class _OwnLines(LineHandler):
    """Picks the server's lines that name a task, `task=NAME`, as they are logged."""

    def __init__(self, keeper: LogKeeper) -> None:
        super().__init__()
        self._keeper = keeper

    def hand_on(self, record: logging.LogRecord) -> None:
        """Have `record` kept if it names a task."""
        if untagged(record.getMessage()) is None:
            return
        line = line_of(record)
        if (said := untagged(line.message)) is not None:
            task, message = said
            self._keeper.keep(task, line.model_copy(update={"message": message}))


class TaskLog:
    """Hands what one task's regions say about it to the keeper.

    Args:
        folder: The task's; what its log has of verdicts already is not written again.
    """

    def __init__(self, topics: Topics, task: str, regions: frozenset[str], folder: Path) -> None:
        self._topics, self._task, self._regions, self._folder = topics, task, regions, folder
        self._verdicts: dict[str, str] = {}
        self._dropped = Dropped()

    async def follow(self, bus: Bus, keeper: LogKeeper) -> None:
        """Keep the lines of the task's devices and gateways, and its gateways' verdicts, until canceled."""
        known = await asyncio.to_thread(newest, self._folder, Wanted(level="WARNING"), 1000)
        self._verdicts = {line.region or "": line.message for line in known if _is_verdict(line)}
        async with bus.subscribe(*self._filters()) as messages:
            async for message in messages:
                try:
                    line = self._line(message)
                except PayloadError as error:
                    if count := self._dropped.one_more():
                        logger.warning(
                            "topic=%s: dropped, %d since this was last told: %s", message.topic, count, error
                        )
                    continue
                if line is not None:
                    keeper.keep(self._task, line)

    def _filters(self) -> list[str]:
        kinds = (Kind.LOG, Kind.GATEWAY_LOG, Kind.TASK_STATUS)
        return [
            self._topics.filter(kind, region=region, task=self._task)
            for region in sorted(self._regions)
            for kind in kinds
        ]

    def _line(self, message: BusMessage) -> LogLine | None:
        address = self._topics.parse(message.topic)
        if not message.payload:
            return None
        if address.kind is Kind.TASK_STATUS:
            return self._verdict(address.region, TaskStatus.parse(message.payload))
        if message.retain:
            return None  # nobody retains lines; one that is comes again with each connect
        log = Log.parse(message.payload)
        return LogLine(
            ts=log.ts,
            source=Source.DEVICE if address.device else Source.GATEWAY,
            region=address.region,
            device=address.device or None,
            level=log.level,
            logger=log.logger,
            message=shortened(log.message),
        )

    def _verdict(self, region: str, status: TaskStatus) -> LogLine | None:
        if status.verdict is None:
            return None
        said = shortened(_sentence(status.verdict))
        # The status is retained, and comes anew with every change of the executions that it counts.
        if self._verdicts.get(region) == said:
            return None
        self._verdicts[region] = said
        return LogLine(
            ts=status.ts,
            source=Source.GATEWAY,
            region=region,
            level="WARNING",
            logger=_GATEWAY,
            message=said,
        )


def _is_verdict(line: LogLine) -> bool:
    return (line.source, line.logger) == (Source.GATEWAY, _GATEWAY) and line.message.startswith(_REFUSED)


def _sentence(verdict: Reason) -> str:
    return f"{_REFUSED}{verdict.code}): {verdict.message}"
