"""Log lines of tasks: as payloads of bounded size, at most ten a second of each task, on MQTT topics."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import re
import threading
import time
import traceback
from collections import OrderedDict, deque
from collections.abc import Callable

from trellis.errors import TrellisError
from trellis.execution import Outlet
from trellis.identifiers import PATTERN
from trellis.payloads import Log

LINES_A_SECOND = 10
_LINE_CHARS = 8000
LINE_BYTES = 50_000
"""A line's payload has less, were each of its characters written as `\\u0000`."""
_TELL_EVERY_S = 10.0
_TASKS = 256
"""Tasks whose pace is remembered; they are those of the present, or nearly so."""
_WAITING = 1000
_LAST_S = 1.0
_TAGGED = re.compile(rf"task=({PATTERN})(?![a-z0-9-])")


def text_of(record: logging.LogRecord) -> str:
    """Return what a record says, with its traceback."""
    message = record.getMessage()
    if record.exc_info and record.exc_info[1] is not None:
        message = "\n".join([message, "".join(traceback.format_exception(record.exc_info[1])).rstrip()])
    return message


def log_of(record: logging.LogRecord) -> Log:
    """Return a record as a payload."""
    message = text_of(record)
    level = (
        record.levelname if record.levelname in {"DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"} else "INFO"
    )
    # A long message's end says more than its middle: a traceback's last line is the error.
    if len(message) > _LINE_CHARS:
        message = f"{message[: _LINE_CHARS // 2]}\n…\n{message[-_LINE_CHARS // 2 :]}"
    return Log.model_validate({"level": level, "logger": record.name, "message": message})


def untagged(message: str) -> tuple[str, str] | None:
    """Return the task that a line names at its beginning, `task=NAME`, and what it says of it."""
    found = _TAGGED.match(message)
    return (found[1], message[found.end() :].lstrip(": ")) if found else None


def told_of(record: logging.LogRecord) -> tuple[str, Log] | None:
    """Return the task that a record names at its beginning, and what it says of it as a payload."""
    # Most name none: of these nothing more is made.
    if untagged(record.getMessage()) is None:
        return None
    log = log_of(record)
    said = untagged(log.message)
    return (said[0], log.model_copy(update={"message": said[1]})) if said else None


class LineHandler(logging.Handler):
    """Hands on what is logged at `INFO` and above; whoever logs never fails by it.

    What cannot be handed on, such as arguments that do not fit their format, is told on stderr as handlers of
    the standard library do.
    """

    def __init__(self) -> None:
        super().__init__(logging.INFO)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self.hand_on(record)
        except Exception:  # noqa: BLE001 - see above
            self.handleError(record)

    def hand_on(self, record: logging.LogRecord) -> None:
        """Hand on `record`, or leave it."""
        raise NotImplementedError


class Pace:
    """Lets ten lines a second pass; the next then says how many were left out."""

    def __init__(self) -> None:
        self._times: deque[float] = deque(maxlen=LINES_A_SECOND)
        self._left_out = 0

    def passing(self, log: Log) -> Log | None:
        """Return the line as it passes, or None if it is left out."""
        now = time.monotonic()
        if len(self._times) == LINES_A_SECOND and now - self._times[0] < 1.0:
            self._left_out += 1
            return None
        self._times.append(now)
        if self._left_out:
            log = log.model_copy(update={"message": f"({self._left_out} lines left out) {log.message}"})
            self._left_out = 0
        return log


class Dropped:
    """Counts what is dropped, so that a flood of it is told of once in ten seconds."""

    def __init__(self) -> None:
        self._count, self._told = 0, -math.inf

    def one_more(self) -> int:
        """Count one; return how many are to be told of now, 0 for none."""
        self._count += 1
        now = time.monotonic()
        if now - self._told < _TELL_EVERY_S:
            return 0
        count, self._count, self._told = self._count, 0, now
        return count


class TaskLines:
    """Publishes log lines of tasks while it runs, at most ten a second of each.

    Args:
        outlet: Where they are published, at QoS 0.
        topic_of: Returns the log topic of a task.
    """

    def __init__(self, outlet: Outlet, topic_of: Callable[[str], str]) -> None:
        self._outlet, self._topic_of = outlet, topic_of
        self._paces: OrderedDict[str, Pace] = OrderedDict()
        self._waiting: deque[tuple[str, Log]] = deque(maxlen=_WAITING)
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._news = asyncio.Event()

    def say(self, task: str, log: Log) -> None:
        """Publish a line of a task soon; any thread may call this, and it never blocks."""
        # The pace comes first: a flood costs the event loop nothing.
        with self._lock:
            line = self._pace(task).passing(log)
            if line is None:
                return
            self._waiting.append((task, line))
            loop = self._loop
        if loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
                loop.call_soon_threadsafe(self._news.set)

    async def run(self) -> None:
        """Publish what is said until cancelled, and then what was said before."""
        self._loop = asyncio.get_running_loop()
        self._news.set()  # for what was said before
        try:
            while True:
                await self._news.wait()
                self._news.clear()
                await self._send()
        finally:
            self._loop = None
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LAST_S):
                    await self._send()

    async def _send(self) -> None:
        while self._waiting:
            task, line = self._waiting.popleft()
            # A log line that the bus could not take is no news to log.
            with contextlib.suppress(TrellisError):
                await self._outlet.publish(self._topic_of(task), line.to_bytes(), qos=0)

    def _pace(self, task: str) -> Pace:
        pace = self._paces.pop(task, None) or Pace()
        self._paces[task] = pace
        if len(self._paces) > _TASKS:
            self._paces.popitem(last=False)
        return pace
