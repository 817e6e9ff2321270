"""The demo's run: starts the processes, posts the task, follows it, and measures the model that comes out.

It speaks HTTP, MQTT and processes, as an operator would, and imports no service.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from trellis.cli.demo.children import Child, Children, words_of
from trellis.cli.demo.plan import DemoPlan
from trellis.cli.demo.runtimes import python_of
from trellis.cli.demo.summary import summarise
from trellis.cli.fleet_keys import make_keys
from trellis.cli.options import server_client
from trellis.cli.task import delivery
from trellis.cli.task.following import Ending, ending_of
from trellis.cli.watching.command import filters, open_bus
from trellis.cli.watching.follower import Follower
from trellis.cli.watching.picture import DeviceView, Picture
from trellis.cli.watching.screen import Screen
from trellis.errors import TrellisError, Unavailable
from trellis.loopback import free_ports
from trellis.payloads import Presence, TaskState
from trellis.topics import Topics

START_S = 90.0
GOODBYE_S = 30.0
"""For what devices say of the end: on a busy machine each needs seconds. Who has died is not waited for."""
EVALUATE_S = 120.0

T = TypeVar("T")


@dataclass(frozen=True)
class Ports:
    """Where the demo listens on 127.0.0.1."""

    broker: int
    front: int
    api: int
    gateways: tuple[int, ...]
    fronts: tuple[int, ...]

    @classmethod
    def choose(cls, regions: int) -> Ports:
        """Return ports that are free now."""
        broker, front, api, *more = free_ports(3 + 2 * regions)
        return cls(broker, front, api, tuple(more[:regions]), tuple(more[regions:]))

    @property
    def broker_url(self) -> str:
        return f"mqtt://127.0.0.1:{self.broker}"

    @property
    def server_url(self) -> str:
        return f"http://127.0.0.1:{self.api}"

    def gateway_url(self, index: int) -> str:
        """Return the HTTP API of the gateway of region `index`."""
        return f"http://127.0.0.1:{self.gateways[index]}"


class Stage:
    """One demo in `folder`; what is worth keeping goes to `result`, which is there already."""

    def __init__(self, plan: DemoPlan, folder: Path, result: Path) -> None:
        self._plan, self._folder, self._result = plan, folder, result
        self._ports = Ports.choose(len(plan.regions))
        self._topics = Topics()
        self._task = plan.task(self._ports.front)
        self._keys = folder / "keys"
        self._here = Path.cwd()  # children run elsewhere

    async def play(self, screen: Screen) -> dict[str, Any]:
        """Run the whole demo, show it on `screen`, and return its summary; nothing of it runs afterwards.

        Raises:
            TrellisError: Something failed; the last words of whoever knows why are in the message.
        """
        began = time.monotonic()
        make_keys(self._keys, self._plan.regions)
        async with Children(self._folder) as children:
            cast = [self._start_broker(children)]
            with screen:
                async with self._following(screen, children, cast) as follower:
                    cast += self._start_services(children)
                    ending = await self._while_all_run(children, cast, self._run_task(follower))
                    if ending.state is not TaskState.SUCCEEDED:
                        raise _failed(ending, cast)
                    picture = await self._devices_ended(follower)
            model = await self._fetch_model()
            accuracy = await self._measure(children, model)
        return summarise(
            self._plan,
            self._task.task,
            ending.view,
            picture,
            accuracy=accuracy,
            seconds=time.monotonic() - began,
            model=str(model),
        )

    def _start_broker(self, children: Children) -> Child:
        return children.start("broker", "broker", "--port", str(self._ports.broker), "--insecure")

    def _start_services(self, children: Children) -> list[Child]:
        plan, ports = self._plan, self._ports
        shared = ("--keys", str(self._keys), "--broker", ports.broker_url, "--insecure")
        server = ("--front-port", str(ports.front), "--api-port", str(ports.api), "--data", plan.data.source)
        started = [children.start("server", "server", *server, *shared)]
        for index, region in enumerate(plan.regions):
            own = ("--region", region, "--api-port", str(ports.gateways[index]), "--server", ports.server_url)
            front = ("--front-port", str(ports.fronts[index])) if plan.tier == "regional" else ()
            started.append(children.start(f"gateway-{region}", "gateway", *own, *front, *shared))
        for one in plan.processes:
            own = ("--name", one.name, "--region", one.region, "--server", self._front_of(one.region))
            part = ("--data", plan.data.source, "--partition", one.partition, "--split", plan.split)
            many = () if one.replicas is None else ("--replicas", str(one.replicas))
            name = f"device-{one.name}" if one.replicas is None else f"devices-{one.region}-{one.name}"
            trains = () if one.backend is None else ("--backend", one.backend)
            python = None if one.backend is None else python_of(one.backend)
            started.append(
                children.start(name, "device", *own, *part, *many, *trains, *shared, python=python)
            )
        return started

    def _front_of(self, region: str) -> str:
        """Return where the devices of a region train: at its gateway, or at the centre."""
        regional = self._plan.tier == "regional"
        port = self._ports.fronts[self._plan.regions.index(region)] if regional else self._ports.front
        return f"127.0.0.1:{port}"

    @contextlib.asynccontextmanager
    async def _following(
        self, screen: Screen, children: Children, cast: list[Child]
    ) -> AsyncIterator[Follower]:
        async with open_bus(self._ports.broker_url, self._keys) as bus:
            await self._while_all_run(children, cast, bus.wait_connected(START_S))
            async with bus.subscribe(*filters(self._topics, None)) as messages:
                follower = Follower(self._topics, screen)
                running = asyncio.create_task(follower.run(messages), name="view")
                try:
                    yield follower
                finally:
                    running.cancel()
                    await asyncio.gather(running, return_exceptions=True)

    async def _run_task(self, follower: Follower) -> Ending:
        task = delivery.signed(self._task, self._keys)
        await _in_time(follower, "the server", _server_online)
        await delivery.post_to_server(task, self._ports.server_url, self._keys)
        await _in_time(follower, "every gateway", self._gateways_online)
        urls = {region: self._ports.gateway_url(n) for n, region in enumerate(self._plan.regions)}
        await delivery.post_to_gateways(task, urls, self._keys)
        async with server_client(self._ports.server_url, self._keys) as client:
            return await ending_of(client, self._task.task)

    def _gateways_online(self, picture: Picture) -> bool:
        states = [picture.gateways.get(region) for region in self._plan.regions]
        return all(state is not None and state.state is Presence.ONLINE for state in states)

    async def _devices_ended(self, follower: Follower) -> Picture:
        # The end reaches devices through their gateway: the summary waits for what they make of it.
        with contextlib.suppress(TimeoutError):
            return await follower.until(self._all_ended, timeout_s=GOODBYE_S)
        return follower.picture

    def _all_ended(self, picture: Picture) -> bool:
        return all(
            self._is_done(picture.devices.get((device.region, device.name))) for device in self._plan.devices
        )

    def _is_done(self, device: DeviceView | None) -> bool:
        if device is None:
            return False
        is_gone = device.state is not None and device.state.state is Presence.OFFLINE
        execution = device.executions.get(self._task.task)
        return is_gone or (execution is not None and execution.state.ended)

    async def _fetch_model(self) -> Path:
        model = self._result / "model.safetensors"
        async with server_client(self._ports.server_url, self._keys) as client:
            await client.download(f"/v1/tasks/{self._task.task}/model", model)
        for name in ("report.html", "metrics.jsonl"):
            written = self._folder / "runs" / self._task.task / name
            if written.exists():
                shutil.copy(written, self._result / name)
        return model

    async def _measure(self, children: Children, model: Path) -> float:
        command = ("model", "evaluate", str(self._here / model), "--data", self._plan.data.source, "--json")
        printed = await children.result_of("evaluation", *command, timeout_s=EVALUATE_S)
        return float(json.loads(printed)["accuracy"])

    @staticmethod
    async def _while_all_run(children: Children, cast: list[Child], work: Coroutine[Any, Any, T]) -> T:
        working = asyncio.ensure_future(work)
        guard = asyncio.create_task(children.until_one_ends(cast), name="guard")
        try:
            await asyncio.wait({working, guard}, return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                guard.result()
            return working.result()
        finally:
            for task in (working, guard):
                task.cancel()
            await asyncio.gather(working, guard, return_exceptions=True)


def _failed(ending: Ending, cast: list[Child]) -> TrellisError:
    words = words_of(child for child in cast if child.name == "server")
    hint = "--keep keeps the logs of all"
    return TrellisError(f"the demo's task {ending.state}: {ending.reason} ({hint})\n{words}")


def _server_online(picture: Picture) -> bool:
    return picture.server is not None and picture.server.state is Presence.ONLINE


async def _in_time(follower: Follower, who: str, holds: Callable[[Picture], bool]) -> None:
    try:
        await follower.until(holds, timeout_s=START_S)
    except TimeoutError:
        raise Unavailable(f"{who} is not online after {START_S:g} s") from None
