"""A SuperLink that runs while somebody needs it, and how it is said to be meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from process_superlink import ProcessSuperLink

from trellis.errors import Unavailable
from trellis.tier.on_demand import OnDemand
from trellis.tier.supervision import RunningSuperLink, SuperLinkKeeper


class Starts:
    """Starts SuperLinks, each once it may."""

    def __init__(self) -> None:
        self.may, self.fails = asyncio.Event(), False
        self.started: list[ProcessSuperLink] = []
        self.troubles: list[str] = []

    @asynccontextmanager
    async def open(self) -> AsyncIterator[RunningSuperLink]:
        await self.may.wait()
        if self.fails:
            raise Unavailable("the SuperLink's port is taken")
        self.started.append(ProcessSuperLink(Path("no-app"), {}, []))
        yield self.started[-1]

    async def trouble(self, problem: str) -> None:
        self.troubles.append(problem)

    @asynccontextmanager
    async def at_work(self) -> AsyncIterator[OnDemand]:
        keeper = SuperLinkKeeper(self.open, lambda _: None)
        demand = OnDemand(keeper, on_ended=lambda: None, on_trouble=self.trouble)
        running = asyncio.create_task(demand.run())
        try:
            yield demand
        finally:
            running.cancel()
            with suppress(asyncio.CancelledError):
                await running


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not holds():  # noqa: ASYNC110 - the state is asked for, and not told
            await asyncio.sleep(0.005)


async def test_a_superlink_that_is_needed_is_starting_until_it_runs_and_down_only_if_it_failed() -> None:
    starts = Starts()
    async with starts.at_work() as demand:
        assert demand.state == "idle"
        with demand.needed():
            assert demand.state == "starting"
            await asyncio.sleep(0.05)
            assert demand.state == "starting"
            starts.may.set()
            await until(lambda: demand.state == "running")
            starts.may.clear()
            starts.started[0].died.set()
            await until(lambda: demand.state != "running")
            await asyncio.sleep(0.15)  # longer than it waits before it starts another
            assert demand.state == "down"
            starts.may.set()
            await until(lambda: demand.state == "running")
        assert demand.state in ("running", "idle")
        await until(lambda: demand.state == "idle")
        starts.may.clear()
        with demand.needed():
            assert demand.state == "starting"


async def test_a_superlink_that_does_not_start_is_down() -> None:
    starts = Starts()
    starts.fails = True
    async with starts.at_work() as demand:
        with demand.needed():
            assert demand.state == "starting"
            starts.may.set()
            await until(lambda: starts.troubles == ["the SuperLink's port is taken"])
            assert demand.state == "down"
        assert demand.state == "idle"
