"""Runs a service from its start to a clean stop, and turns how it ended into an exit code."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from rich.console import Console
from rich.logging import RichHandler

from trellis.errors import TrellisError, leaves
from trellis.foreign_text import harmless

logger = logging.getLogger(__name__)

INTERRUPTED = 130


def configure_logging(level: str = "INFO", *, whose: Callable[[], str] | None = None) -> None:
    """Send log lines to stderr: with colours on a terminal, plain with a time elsewhere.

    Args:
        level: Lines below it are left out.
        whose: What a line begins with, asked where it is logged: for a process that is several.
    """
    handler: logging.Handler
    if sys.stderr.isatty():
        handler = RichHandler(console=Console(stderr=True), show_path=False, rich_tracebacks=False)
        handler.setFormatter(_Harmless("%(whose)s%(message)s"))
    else:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(_Harmless("%(asctime)s %(levelname)s %(name)s: %(whose)s%(message)s"))
    handler.addFilter(_Signed(whose or str))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for chatty in ("httpx", "httpcore", "uvicorn", "flwr"):
        logging.getLogger(chatty).setLevel(max(logging.WARNING, logging.getLevelNamesMapping()[level]))


class _Harmless(logging.Formatter):
    """Escapes what would steer the terminal of whoever reads the log: others' words stand in it, too."""

    def format(self, record: logging.LogRecord) -> str:
        return harmless(super().format(record))


class _Signed(logging.Filter):
    """Puts on every line whose it is."""

    def __init__(self, whose: Callable[[], str]) -> None:
        super().__init__()
        self._whose = whose

    def filter(self, record: logging.LogRecord) -> bool:
        record.whose = self._whose()
        return True


def run_service(main: Callable[[asyncio.Event], Coroutine[Any, Any, None]]) -> int:
    """Run `main(stop)` and return the exit code.

    SIGINT and SIGTERM set `stop`, on which `main` should end; a second signal cancels it. Returns 0 when
    it ended by itself or by SIGTERM, 130 on SIGINT, and an error's own exit code after printing it.
    """
    try:
        return asyncio.run(_supervise(main))
    except (KeyboardInterrupt, asyncio.CancelledError):
        return INTERRUPTED
    except TrellisError as error:
        return _report([error])
    except BaseExceptionGroup as group:
        # A TaskGroup wraps what its tasks raise. Ours are answers; all else is a bug and keeps its traceback.
        found = list(leaves(group))
        ours = [error for error in found if isinstance(error, TrellisError)]
        if len(ours) < len(found):
            raise
        return _report(ours)


def _report(errors: list[TrellisError]) -> int:
    for error in errors:
        sys.stderr.write(f"error: {harmless(str(error))}\n")
    return max(error.exit_code for error in errors)


async def _supervise(main: Callable[[asyncio.Event], Awaitable[None]]) -> int:
    stop = asyncio.Event()
    received: list[signal.Signals] = []
    task = asyncio.ensure_future(main(stop))

    def on_signal(number: signal.Signals) -> None:
        received.append(number)
        stop.set()
        if len(received) > 1:
            task.cancel()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal, number)
    await task
    return INTERRUPTED if signal.SIGINT in received else 0
