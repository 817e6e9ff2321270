"""A stand-in for the exporter's command line, and how to wait for what it makes."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest

from central_server.exporting import Exporter, Wanted
from trellis.artefacts.offer import NotYet, Offer

WANTED = Wanted("softmax", (1, 8, 8), 10, "onnx")

# Writes what it was asked for, and a line into a count; `slow` waits, `bad` fails as our command line does.
CHILD = """
import sys, time, pathlib
how, path, count, what = sys.argv[1:]
with open(count, "a") as file:
    file.write(what + "\\n")
if how == "slow":
    time.sleep(60)
if how == "bad":
    print("Traceback: noise", file=sys.stderr)
    print("error: model 'softmax': operator aten::odd in module 'head' cannot be exported", file=sys.stderr)
    sys.exit(2)
if how == "full":
    print("error: made.onnx cannot be written: No space left on device", file=sys.stderr)
    sys.exit(1)
if how == "kill":
    import os
    os.kill(os.getpid(), 9)
pathlib.Path("scratch").write_text("a compiler's")
import tempfile
tempfile.mkdtemp()
if how != "nothing":
    pathlib.Path(path).write_text("" if how == "empty" else what)
"""


class Child:
    """The stand-in for the exporter's command line.

    Attributes:
        runs: What it was started for.
    """

    def __init__(self, folder: Path) -> None:
        self.how, self._count = "good", folder / "count"
        self.runs: list[str] = []
        self._strangers = psutil.Process().children()  # the tests' own helpers, and what other tests left

    def __call__(self, wanted: Wanted, path: Path) -> Sequence[str]:
        self.runs.append(str(wanted))
        return [sys.executable, "-c", CHILD, self.how, str(path), str(self._count), str(wanted)]

    @property
    def works(self) -> bool:
        """Whether one of its processes has come to its first line."""
        return self._count.exists()

    @property
    def processes(self) -> list[psutil.Process]:
        """Those that export, or that have ended and that nobody has waited for."""
        found = psutil.Process().children()
        return [one for one in found if one not in self._strangers and _exports(one)]


def _exports(process: psutil.Process) -> bool:
    try:
        return CHILD in process.cmdline()
    except psutil.ZombieProcess:
        return True
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
def child(tmp_path: Path) -> Child:
    return Child(tmp_path)


async def made(exporter: Exporter, wanted: Wanted = WANTED) -> Offer:
    """Return the offer once it is there."""
    async with asyncio.timeout(60):
        while True:
            try:
                return await exporter.offer(wanted)
            except NotYet:
                await asyncio.sleep(0.02)


async def not_yet(exporter: Exporter, problem: str) -> NotYet:
    """Return what is said instead of an offer, once it says so."""
    async with asyncio.timeout(60):
        while True:
            with pytest.raises(NotYet) as told:
                await exporter.offer(WANTED)
            if problem in str(told.value):
                return told.value
            await asyncio.sleep(0.02)
