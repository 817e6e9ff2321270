"""One thing looked at, and probes: what looks at several, in bounded time."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import TypeVar

T = TypeVar("T")


class Status(StrEnum):
    """How it is."""

    OK = "ok"
    WARNING = "warning"
    FAILURE = "failure"
    SKIPPED = "skipped"


@dataclass(frozen=True)
class Check:
    """One thing looked at.

    Attributes:
        name: What it is, stable for machines.
        found: What was found, or why it was not looked at.
        remedy: What to do; empty where nothing is to be done.
    """

    name: str
    status: Status
    found: str
    remedy: str = ""


def ok(name: str, found: str) -> Check:
    """Return a check of something that is as it should be."""
    return Check(name, Status.OK, found)


def warning(name: str, found: str, remedy: str) -> Check:
    """Return a check of something that works, and should be mended."""
    return Check(name, Status.WARNING, found, remedy)


def failure(name: str, found: str, remedy: str) -> Check:
    """Return a check of something that does not work."""
    return Check(name, Status.FAILURE, found, remedy)


def skipped(name: str, why: str, remedy: str = "") -> Check:
    """Return a check that could not be made, or was not asked for."""
    return Check(name, Status.SKIPPED, why, remedy)


@dataclass(frozen=True)
class Probe:
    """Looks at something.

    Attributes:
        names: Of the checks that it makes.
        look: Makes them.
    """

    names: tuple[str, ...]
    look: Callable[[], Awaitable[Iterable[Check]]]


def blocking(names: Iterable[str], look: Callable[[], Iterable[Check]]) -> Probe:
    """Return a probe that blocks, in a thread of its own."""
    return Probe(tuple(names), lambda: aside(look))


async def examine(probes: Iterable[Probe], *, deadline_s: float) -> list[Check]:
    """Run all probes at once and return their checks; what has no answer in time is a failure."""
    running = [(probe, asyncio.create_task(_looked(probe), name=probe.names[0])) for probe in probes]
    try:
        await asyncio.wait([task for _, task in running], timeout=deadline_s)
        checks: list[Check] = []
        for probe, task in running:
            checks += task.result() if task.done() else _late(probe, deadline_s)
        return checks
    finally:
        for _, task in running:
            task.cancel()


async def _looked(probe: Probe) -> list[Check]:
    try:
        return list(await probe.look())
    except Exception as error:  # noqa: BLE001 - what cannot be looked at must not hide all else
        found = f"cannot be looked at: {type(error).__name__}: {error}"
        return [failure(name, found, "mend what it names, or report it as a fault") for name in probe.names]


def _late(probe: Probe, deadline_s: float) -> list[Check]:
    found = f"no answer within {deadline_s:g} s"
    return [
        failure(name, found, "look at what it needs: network, disk, name service") for name in probe.names
    ]


async def aside(work: Callable[[], T]) -> T:
    """Return what `work` returns, done in a daemon thread.

    An executor's threads are waited for at the interpreter's end, so a name service or a network disk that
    hangs would keep the command from ending.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(settled: Callable[[], None]) -> None:
        if not future.done():
            settled()

    def run() -> None:
        try:
            result = work()
        except Exception as error:  # noqa: BLE001 - it is raised where it is awaited
            settled = partial(future.set_exception, error)
        else:
            settled = partial(future.set_result, result)
        with contextlib.suppress(RuntimeError):  # nobody waits any longer: the loop is closed
            loop.call_soon_threadsafe(settle, settled)

    threading.Thread(target=run, name="doctor", daemon=True).start()
    return await future
