"""What a gateway runs where its region aggregates: a front, and while a task needs them a SuperLink and apps.

RegionalTier.__aenter__
└── ConfigError   the front's port is taken

A SuperLink costs 265 MB: it runs while a task of the region needs it, and no longer.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterator
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

from regional_gateway.announcer import Announcer
from regional_gateway.artefacts import RegionalArtefacts
from regional_gateway.ledger import Ledger, TaskRecord
from regional_gateway.nested import Nested
from regional_gateway.own_part import OwnPart
from regional_gateway.place import Place
from regional_gateway.region_task import ROUNDS, RegionTask
from regional_gateway.settings import GatewaySettings
from trellis.artefacts.serving import create_artefact_app
from trellis.errors import Refused, Unavailable, in_one_line
from trellis.flower.backchannel import RoundRecord
from trellis.keys.principals import Principal
from trellis.mqtt import Bus, Publication
from trellis.payloads import Round, TaskState
from trellis.tier.disk import RETRY_S
from trellis.tier.faults import may_pass, own_fault, pass_on
from trellis.tier.following import follow_fleet, watch_broker
from trellis.tier.history import read_rounds
from trellis.tier.hosting import OpenSuperLink, TierHost
from trellis.tier.on_demand import OnDemand, SuperLinkState
from trellis.tls import TlsFiles
from trellis.topics import Topics

logger = logging.getLogger(__name__)


class RegionalTier:
    """A region's own rounds, from `__aenter__` to `__aexit__`; `run` drives its tasks in between.

    Args:
        settings: The gateway's; it names the front's port.
        tls: The gateway's certificate, or None on loopback.
        open_superlink: Starts a SuperLink.

    Attributes:
        front: Where devices reach the front, `host:port`.
        part: What the region says of its part.
    """

    def __init__(
        self, settings: GatewaySettings, tls: TlsFiles | None, open_superlink: OpenSuperLink
    ) -> None:
        self._settings, self._tls = settings, tls
        self._topics = Topics(settings.base)
        self.part = OwnPart(self._topics, settings.region, settings.state / "tasks")
        self._artefacts = RegionalArtefacts(settings.state / "artefacts", tls)
        self._host = TierHost(
            open_superlink,
            app=settings.app,
            timing=settings.timing,
            find=self.find,
            find_member=self.find,
            artefacts=create_artefact_app(self._artefacts),
            admits=self._admits,
        )
        self._keeper = self._host.keeper
        self._nested: Nested | None = None
        self._stack = AsyncExitStack()
        self._tasks: dict[str, RegionTask] = {}
        self._driving: dict[str, asyncio.Task[None]] = {}
        self._superlink = OnDemand(
            self._keeper, on_ended=lambda: self._host.front.point_to(None), on_trouble=self._tell
        )
        self._touched: asyncio.Queue[str] = asyncio.Queue()
        self._due: set[str] = set()
        self._looking: set[str] = set()
        self._rounds_above: dict[str, int] = {}
        self.front = ""

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            settings = self._settings
            await stack.enter_async_context(self._artefacts)
            port = settings.front_port or 0
            url = await self._host.open(stack, host=settings.host, port=port, tls=self._tls)
            self.front = settings.front_address or urlsplit(url).netloc
            self._stack = stack.pop_all()
        logger.info("Flower front of the region: devices reach it at %s", self.front)
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    def load(self, ledger: Ledger, place: Place, nested: Nested) -> None:
        """Take the region's tasks from `ledger`, what is above from `place`, what is below from `nested`."""
        self._ledger, self._place, self._nested = ledger, place, nested
        self._artefacts.load(ledger, place)
        ledger.watch(self.touch)

    def _admits(self, principal: Principal | None) -> bool:
        return self._nested is not None and self._nested.admits(principal)

    @property
    def superlink(self) -> SuperLinkState:
        """How the region's SuperLink is."""
        return self._superlink.state

    def find(self, task: str) -> RegionTask:
        """Return the task of a name.

        Raises:
            Refused: The region aggregates no such task.
        """
        if task not in self._tasks:
            raise Refused("unknown", f"task {task[:80]!r} is not averaged in region {self._place.region!r}")
        return self._tasks[task]

    def history(self, task: str) -> tuple[RoundRecord, ...]:
        """Return the last of the region's own finished rounds of a task."""
        return self._tasks[task].history if task in self._tasks else ()

    def standing(self) -> Iterator[Publication]:
        """Yield the region's executions as they must stand on its brokers."""
        for record in self._ledger:
            yield from self.part.standing(record)

    def touch(self, task: str) -> None:
        """Have a task looked at: the ledger has changed."""
        self._touched.put_nowait(task)

    def heard_round(self, task: str, above: Round) -> None:
        """Take in what the tier above has announced."""
        self._rounds_above[task] = above.announced
        if task in self._tasks:
            self._tasks[task].fleet.announced(above.announced)

    async def run(self, bus: Bus, announcer: Announcer) -> None:
        """Drive the region's tasks until cancelled; they go on at the next start.

        Args:
            bus: The region's broker, where its members are.
            announcer: Says what the region does.
        """
        self.part.announcer = announcer
        try:
            async with asyncio.TaskGroup() as group:
                start = group.create_task
                start(self._superlink.run(), name="superlink")
                start(watch_broker(bus, lambda: [task.fleet for task in self._tasks.values()]), name="broker")
                for record in self._ledger:
                    self.touch(record.task)
                try:
                    while True:
                        self._due.add(name := await self._touched.get())
                        if name not in self._looking:
                            self._looking.add(name)
                            start(self._look_while_due(name, bus, group), name=f"look {name}")
                finally:
                    for task in self._tasks.values():
                        task.close()
        finally:
            self._tasks, self._driving = {}, {}
            self._due, self._looking = set(), set()
            self.part.announcer = None

    async def _look_while_due(self, name: str, bus: Bus, group: asyncio.TaskGroup) -> None:
        """See to one task's news: what takes long there holds up no other."""
        while name in self._due:
            self._due.discard(name)
            await self._look_soon(name, bus, group)
        self._looking.discard(name)

    async def _look_soon(self, name: str, bus: Bus, group: asyncio.TaskGroup) -> None:
        record = self._ledger.get(name)
        try:
            await self._look(name, bus, group)
        except Exception as error:  # noqa: BLE001 - see there
            await self._stumbled(name, record.descriptor.revision if record is not None else 0, error)

    async def _stumbled(self, name: str, revision: int, error: Exception) -> None:
        """Look again at a task that met an error, or end it here: the others, and the gateway, go on."""
        pass_on(error)
        if may_pass(error):
            logger.error("task=%s: is looked at again in a moment: %s", name, in_one_line(error))
            asyncio.get_running_loop().call_later(RETRY_S, self.touch, name)
            return
        logger.error("task=%s: a fault of the gateway's own", name, exc_info=error)
        reason = own_fault("gateway", error)
        try:
            if (task := self._tasks.get(name)) is not None:
                await task.end(TaskState.FAILED, reason.code, reason.message)
                await self._host.supervisor.abandon(task)
            # Meanwhile a later revision may have come, which runs anew.
            record = self._ledger.get(name)
            if record is not None and (not record.runs or record.descriptor.revision == revision):
                await self.part.fail(record, reason)
        except Exception:
            logger.exception("task=%s: nor can its end be said", name)

    async def _look(self, name: str, bus: Bus, group: asyncio.TaskGroup) -> None:
        record, task = self._ledger.get(name), self._tasks.get(name)
        if record is None or record.cleared or not self._place.aggregates(record.descriptor):
            await self._forget(name, whole=record is None)
            return
        runs = record.descriptor.desired == "run"
        if task is not None and runs and task.revision != record.descriptor.revision:
            await self._retire(task)
            task = None
        task = task or await self._make(record)
        await self._bring_up_to_date(task, record)
        if name not in self._driving:
            if task.ended:
                await task.settle()
            else:
                self._driving[name] = group.create_task(self._drive(task, bus), name=f"task {name}")

    async def _make(self, record: TaskRecord) -> RegionTask:
        name, revision = record.task, record.descriptor.revision
        canceled = record.descriptor.desired == "canceled"
        folder = (self.part.folders.latest_run if canceled else self.part.folders.run)(name, revision)
        task = self._tasks[name] = RegionTask(
            record.descriptor,
            region=self._place.region,
            folder=folder,
            history=await asyncio.to_thread(read_rounds, folder / ROUNDS),
            report=self.part.report(name),
            above=lambda: self.part.above(name, self._place.server(record.descriptor), self._tls),
            say=lambda round_: self.part.round(name, round_),
        )
        task.fleet.announced(self._rounds_above.get(name, 0))
        return task

    async def _bring_up_to_date(self, task: RegionTask, record: TaskRecord) -> None:
        if record.descriptor.desired == "canceled":
            task.cancel(record.descriptor.revision)
            if task.name not in self._driving or self._keeper.current is None:
                await task.end(TaskState.CANCELED, "canceled", "")  # no app is there to do it
        elif record.central is not None and record.central.ended:
            task.end_centrally(record.central)
        elif task.left_s <= 0:
            task.expire()

    async def _drive(self, task: RegionTask, bus: Bus) -> None:
        """See a task to its end in this region."""
        try:
            with self._superlink.needed():
                await task.begin()
                async with asyncio.TaskGroup() as group:
                    start = group.create_task
                    workers = [
                        start(follow_fleet(bus, self._topics, task.fleet), name=f"fleet {task.name}"),
                        start(task.expire_in_time(), name=f"expiry {task.name}"),
                        start(task.follow_members(), name=f"members {task.name}"),
                    ]
                    driver = start(self._host.supervisor.drive(task), name=f"app {task.name}")
                    await task.wait_ended()
                    await asyncio.wait({driver}, timeout=self._leave_s)
                    for worker in (driver, *workers):
                        worker.cancel()
            await task.settle()
        except Exception as error:  # noqa: BLE001 - see there
            await self._stumbled(task.name, task.revision, error)
        finally:
            self._driving.pop(task.name, None)

    @property
    def _leave_s(self) -> float:
        """How long an app may take to leave; without a SuperLink there is none."""
        timing = self._settings.timing
        return timing.leave_s + 2 * timing.cancel_s if self._keeper.current is not None else 0.0

    async def _retire(self, task: RegionTask) -> None:
        """Be rid of a run: another, or none, takes its place."""
        task.close()
        self._tasks.pop(task.name, None)
        if (driver := self._driving.get(task.name)) is not None:
            if task.ended:
                await asyncio.wait({driver}, timeout=self._leave_s)  # its app is leaving
            driver.cancel()
            await asyncio.wait({driver})
        await self._host.supervisor.abandon(task)

    async def _forget(self, name: str, *, whole: bool) -> None:
        if name in self._tasks:
            await self._retire(self._tasks[name])
        self._rounds_above.pop(name, None)
        await self.part.forget(name, whole=whole)

    async def _tell(self, problem: str) -> None:
        for task in list(self._tasks.values()):
            if task.name in self._driving:
                with contextlib.suppress(Unavailable):
                    await task.trouble(problem)
