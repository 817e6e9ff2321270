"""The central server: its HTTP API, the front, the SuperLink behind it, and its tasks, in one event loop.

CentralServer.run
├── ConfigError   a port is taken, the runs folder is another server's, or no broker listens
├── Displaced     a younger server has come to the same broker
├── Refused       the task given at the start is new, and is not taken
└── Unavailable   the SuperLink does not start
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from typing import Any

from central_server import scalars
from central_server.admission import Admission
from central_server.api import create_api
from central_server.artefacts import TaskArtefacts
from central_server.exporting import Exporter
from central_server.listening import Gateways
from central_server.log_keeping import LogKeeper, TaskLog
from central_server.publisher import Publisher
from central_server.settings import ServerSettings
from central_server.store import Store
from central_server.task import ServerTask
from central_server.tasks import Tasks
from trellis.artefacts.serving import create_artefact_app
from trellis.errors import ConfigError, Unavailable, in_one_line
from trellis.http.server import HttpServer, advertised
from trellis.keys.expiry import reminding
from trellis.mqtt import FLEET, Birth, BrokerSettings, Bus, MqttBus, Publication
from trellis.payloads import TaskState
from trellis.tier.disk import RETRY_S
from trellis.tier.faults import may_pass, own_fault, pass_on
from trellis.tier.fleet import TaskFleet
from trellis.tier.following import follow_fleet, watch_broker
from trellis.tier.hosting import OpenSuperLink, TierHost, superlinks

logger = logging.getLogger(__name__)

CLIENT_ID = "central/server"

OpenBus = Callable[[Publication, Birth], Bus]


async def serve(settings: ServerSettings, stop: asyncio.Event) -> None:
    """Run the central server until `stop` is set."""

    def open_bus(will: Publication, birth: Birth) -> Bus:
        # Its own id for each process: so a second server on one broker is seen, instead of the two throwing
        # each other off the broker for ever.
        client_id = f"{CLIENT_ID}/{secrets.token_hex(4)}"
        broker = BrokerSettings(settings.broker_url, client_id, tls=settings.tls)
        return MqttBus(broker, will=will, birth=birth, limits=FLEET)

    open_superlink = superlinks(settings.runs / ".superlink", "central_server.rounds.app")
    async with reminding(settings.tls):
        with Store(settings.runs) as store:
            await CentralServer(settings, store, open_bus, open_superlink).run(stop)


class CentralServer:
    """One central server."""

    def __init__(
        self, settings: ServerSettings, store: Store, open_bus: OpenBus, open_superlink: OpenSuperLink
    ) -> None:
        self._settings = settings
        self._open_bus = open_bus
        self._gateways = Gateways()
        self._logs = LogKeeper(store.runs)
        self._publisher = Publisher(settings.topics)
        admission = Admission(settings.keyring, settings.data)
        self._tasks = Tasks(store, self._publisher, admission, self._start, self._retire)
        self._exporter = Exporter(store.runs / ".artefacts")
        self._artefacts = TaskArtefacts(self._tasks, self._exporter)
        self._host = TierHost(
            open_superlink,
            app=settings.app,
            timing=settings.timing,
            find=self._tasks.find,
            artefacts=create_artefact_app(self._artefacts),
        )
        self._bus: Bus | None = None
        self._group: asyncio.TaskGroup | None = None
        self._waiting: list[ServerTask] = []
        self._workers: set[asyncio.Task[None]] = set()
        self._followers: dict[str, asyncio.Task[None]] = {}
        self.api_url = ""
        self.front_url = ""

    @property
    def broker_connected(self) -> bool:
        """Whether the broker has us."""
        return self._bus is not None and self._bus.connected

    @property
    def superlink_alive(self) -> bool:
        """Whether a SuperLink runs."""
        return self._host.keeper.current is not None

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until `stop` is set, then end everything; tasks go on at the next start."""
        async with AsyncExitStack() as stack:
            stack.enter_context(self._logs)
            await stack.enter_async_context(self._exporter)
            # Before the ports are open: a task that came earlier would be taken for new.
            await self._tasks.resume()
            await self._open_ports(stack)
            bus = await stack.enter_async_context(
                self._open_bus(self._publisher.will(), self._publisher.birth)
            )
            self._bus = bus
            await self._greet(bus)
            if self._settings.task is not None:
                await self._tasks.post_at_start(self._settings.task)
            await self._work(bus, stop)
            await self._publisher.goodbye()

    async def _open_ports(self, stack: AsyncExitStack) -> None:
        settings = self._settings
        port = settings.front_port
        self.front_url = await self._host.open(stack, host=settings.host, port=port, tls=settings.tls)
        api = HttpServer(
            create_api(self._tasks, self._gateways, self),
            host=settings.host,
            port=settings.api_port,
            tls=settings.tls,
        )
        self.api_url = advertised((await stack.enter_async_context(api)).url)
        self._publisher.api = self.api_url
        logger.info("API %s, Flower front %s, runs in %s", self.api_url, self.front_url, settings.runs)

    async def _greet(self, bus: Bus) -> None:
        try:
            await bus.wait_connected(self._settings.timing.broker_s)
        except Unavailable as error:
            raise ConfigError(f"broker {self._settings.broker_url}", str(error)) from None
        self._publisher.open(bus)

    async def _work(self, bus: Bus, stop: asyncio.Event) -> None:
        async with asyncio.TaskGroup() as group:
            self._group = group
            self._spawn(self._host.keeper.run(), "superlink")
            self._spawn(self._gateways.listen(bus, self._settings.topics), "gateways")
            self._spawn(self._artefacts.listen(bus, self._settings.topics), "devices' runtimes")
            self._spawn(self._publisher.guard(bus), "own state")
            self._spawn(self._logs.run(), "task logs")
            self._spawn(watch_broker(bus, self._fleets), "broker's presence")
            self._spawn(asyncio.to_thread(scalars.warm_up), "tensorboard")
            while self._waiting:
                self._start(self._waiting.pop())
            await stop.wait()
            # Tasks that still come are stored, and started at the next start.
            self._group = None
            for task in self._tasks:
                task.close()
            for worker in list(self._workers):
                worker.cancel()

    def _fleets(self) -> list[TaskFleet]:
        return [task.fleet for task in self._tasks]

    def _start(self, task: ServerTask) -> None:
        if self._group is None:
            self._waiting.append(task)
        else:
            self._followers[task.name] = self._spawn(self._follow(task), f"task {task.name}")

    async def _retire(self, task: ServerTask) -> None:
        """Follow an ended task no more: its topics and its folder are about to be another run's."""
        task.close()
        if task in self._waiting:
            self._waiting.remove(task)
        follower = self._followers.pop(task.name, None)
        if follower is not None:
            follower.cancel()
            await asyncio.wait({follower})

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        if self._group is None:
            raise RuntimeError("the server does not work")
        worker = self._group.create_task(work, name=name)
        self._workers.add(worker)
        worker.add_done_callback(self._workers.discard)
        return worker

    async def _follow(self, task: ServerTask) -> None:
        """See a task to its end, and its topics until they are cleared."""
        while not await self._seen_through(task):
            # From where it stands: its app is ended, and another one goes on.
            await self._host.supervisor.abandon(task)
            await asyncio.sleep(RETRY_S)
        if task.ended:
            await asyncio.sleep(max(self._left_s(task), 0))
            await task.clear()

    async def _seen_through(self, task: ServerTask) -> bool:
        """See it through, to a failure if need be; returns False after an error that may pass."""
        try:
            await self._see_through(task)
        except Exception as error:
            pass_on(error)
            if may_pass(error):
                logger.error("task=%s: is taken up again in a moment: %s", task.name, in_one_line(error))
                return False
            # Whatever it is, it is this task's: the others, and the server, go on.
            logger.exception("task=%s: a fault of the server's own", task.name)
            await self._fail(task, error)
        return True

    async def _fail(self, task: ServerTask, error: Exception) -> None:
        reason = own_fault("server", error)
        try:
            await task.end(TaskState.FAILED, reason.code, reason.message)
        except Exception:
            logger.exception("task=%s: nor can its end be kept: it is taken up at the next start", task.name)
        await self._host.supervisor.abandon(task)

    async def _see_through(self, task: ServerTask) -> None:
        if self._bus is None:
            raise RuntimeError("the server has no bus")
        if not task.ended or self._left_s(task) > 0:
            await task.show()
            if not task.ended:
                await self._artefacts.begin(task)
            async with asyncio.TaskGroup() as group:
                listeners = self._listen(group, self._bus, task)
                await self._host.supervisor.drive(task)
                await asyncio.sleep(max(self._left_s(task), 0))
                for listener in listeners:
                    listener.cancel()

    def _listen(self, group: asyncio.TaskGroup, bus: Bus, task: ServerTask) -> list[asyncio.Task[None]]:
        topics = self._settings.topics
        log = TaskLog(topics, task.name, task.fleet.regions, task.folder)
        return [
            group.create_task(follow_fleet(bus, topics, task.fleet), name=f"fleet {task.name}"),
            group.create_task(log.follow(bus, self._logs), name=f"log {task.name}"),
        ]

    def _left_s(self, task: ServerTask) -> float:
        return task.record.since / 1000 + self._settings.timing.retention_s - time.time()
