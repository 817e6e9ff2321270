"""A task's folder as a disk that may be full: what cannot be written stops that task alone, until it can."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from trellis.disk import probe, read_through
from trellis.errors import Unavailable

logger = logging.getLogger(__name__)

RETRY_S = 1.0
CHECKPOINTS = "checkpoints/round-*"
"""Where, in a task's folder, `trellis.tier.checkpoints` keeps what an app goes on from."""

T = TypeVar("T")


class Disk:
    """Writes into one task's folder, and reads there, off the event loop.

    Attributes:
        refusal: Why the last write failed, None if it did not.
    """

    def __init__(self, task: str, folder: Path) -> None:
        self._task, self._folder = task, folder
        self.refusal: str | None = None

    async def write(self, write: Callable[[], None]) -> None:
        """Have `write` done.

        Raises:
            Unavailable: The disk does not take it; nothing may be built on it.
        """
        try:
            await asyncio.to_thread(write)
        except OSError as error:
            refusal = f"{self._folder} cannot be written: {error.strerror or error}"
            if refusal != self.refusal:
                logger.error(
                    "task=%s: %s; free space there: until then nothing of it goes on", self._task, refusal
                )
            self.refusal = refusal
            raise Unavailable(f"task {self._task!r}: {refusal}; free space there, then try again") from error
        if self.refusal is not None:
            logger.info("task=%s: %s can be written again", self._task, self._folder)
            self.refusal = None

    async def read(self, path: Path, read: Callable[[Path], T]) -> T:
        """Return what `read` makes of a file.

        Raises:
            Unavailable: The disk does not give it.
        """
        try:
            return await asyncio.to_thread(read, path)
        except OSError as error:
            why = f"{path} cannot be read: {error.strerror or error}"
            raise Unavailable(f"task {self._task!r}: {why}") from error

    async def wait_usable(self, is_over: Callable[[], bool]) -> bool:
        """Return once it takes a write and gives a checkpoint, if it need do that; say whether it refused."""
        return await self._wait_writable() | await self._wait_readable(is_over)

    async def _wait_readable(self, is_over: Callable[[], bool]) -> bool:
        refused = False
        while not is_over():
            try:
                await asyncio.to_thread(_give_checkpoint, self._folder)
            except OSError as error:
                if not refused:
                    logger.error(
                        "task=%s: no checkpoint can be read: %s; until then nothing of it goes on",
                        self._task,
                        error,
                    )
                refused = True
                await asyncio.sleep(RETRY_S)
            else:
                break
        return refused

    async def _wait_writable(self) -> bool:
        refused = False
        while True:
            if self.refusal is not None:
                refused = True
                await asyncio.sleep(RETRY_S)
            with contextlib.suppress(Unavailable):
                await self.write(lambda: probe(self._folder))
                return refused


def _give_checkpoint(folder: Path) -> None:
    """Return if the disk gives the whole of a checkpoint, or there is none; else raise what it says."""
    refused: OSError | None = None
    for path in folder.glob(CHECKPOINTS):
        try:
            read_through(path)
        except OSError as error:
            refused = OSError(error.errno, error.strerror, str(path))
        else:
            return
    if refused is not None:
        raise refused
