"""A whole federation of real processes on loopback, for tests from end to end.

    async with Federation(tmp_path, devices=(Device("d1", "eu-1"), Device("d2", "us-1"))) as fleet:
        file = fleet.task("digits", rounds=2)
        assert (await fleet.operator("task", "run", file)).code == 0

On leaving, everything is stopped, and it is an error if a process, a port or a temporary file is left.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from gate import Gate, Held
from members import Finished, Ground, Machine, Member, listened, listening_ports
from observer import Observer, retained
from reserved_ports import ReservedPorts
from slow_link import Line, SlowLink

from trellis.cli.fleet_keys import make_keys
from trellis.cli.task import delivery
from trellis.errors import TrellisError
from trellis.http.client import ServiceClient
from trellis.identifiers import CENTRAL

START_S = 150.0
"""A machine with two cores that runs other tests as well takes a minute for twelve interpreters."""
ENDED = ("succeeded", "failed", "canceled")


@dataclass(frozen=True)
class Device:
    """One device; by default it gets its share of digits among all devices of the federation."""

    name: str
    region: str = "eu-1"
    data: str = "digits"
    partition: str | None = None
    starts: bool = True
    options: tuple[str, ...] = ()
    machine: Machine | None = None

    @property
    def path(self) -> str:
        """Its topics' common part."""
        return f"{self.region}/devices/{self.name}"


class Federation:
    """A broker, a server, a gateway for each region, and devices.

    Args:
        folder: Gets everything; removed at the end.
        server_options: More options of `trellis server`.
        gateway_options: More options of every gateway.
        own_broker: The regions that have a broker of their own, beside the server's; those below use it, too.
        parents: The gateways that stand below another's: each region's parent.
        gated: Put a `Gate` before each front, the server's and those of the regions.
        cold: Every process is an interpreter of its own from its start on; see `nursery`.
        line: What lies between devices and the rest: a bad link to the front, and another to the broker.

    Attributes:
        links: The two bad links, by what they lead to: `front` and `broker`; empty without `line`.
        region_brokers: The regions' own brokers.
        fronts: Where devices reach the gateways' own Flower fronts, `host:port`.
    """

    def __init__(
        self,
        folder: Path,
        *,
        devices: tuple[Device, ...],
        server_options: tuple[str, ...] = (),
        gateway_options: tuple[str, ...] = (),
        own_broker: tuple[str, ...] = (),
        parents: Mapping[str, str] | None = None,
        line: Line | None = None,
        gated: bool = False,
        cold: bool = False,
    ) -> None:
        self.ground = Ground(folder, cold=cold)
        self.folder, self.keys = folder, folder / "keys"
        self.specs = {device.name: device for device in devices}
        self._parents = dict(parents or {})
        regions = (*(device.region for device in devices), *self._parents, *self._parents.values())
        self.regions = tuple(dict.fromkeys(regions))
        count = len(self.regions)
        self._ports = ReservedPorts(5 + 3 * count + len(own_broker))
        broker, self.front_port, api, bad_front, bad_broker, *more = self._ports.numbers
        self.broker_url, self.server_url = _mqtt(broker), f"http://127.0.0.1:{api}"
        self.gateway_urls = {
            region: f"http://127.0.0.1:{port}"
            for region, port in zip(self.regions, more[:count], strict=True)
        }
        fronts, doors = more[count : 2 * count], more[2 * count : 3 * count]
        del more[count : 3 * count]
        self._front_ports = dict(zip(self.regions, fronts, strict=True))
        reached = zip(self.regions, doors if gated else fronts, strict=True)
        self.fronts = {region: f"127.0.0.1:{port}" for region, port in reached}
        self.region_broker_urls = dict(zip(own_broker, map(_mqtt, more[count:]), strict=True))
        self.links: dict[str, SlowLink] = {}
        self.task_port, self._device_broker_url = self.front_port, self.broker_url
        self._gates: dict[str, Gate] = {}
        if gated:
            self.task_port = bad_front
            self._gates[CENTRAL] = Gate(bad_front, self.front_port)
            for region, door in zip(self.regions, doors, strict=True):
                self._gates[region] = Gate(door, self._front_ports[region])
        if line is not None:
            self.links = {
                "front": SlowLink(bad_front, self.front_port, line),
                "broker": SlowLink(bad_broker, broker, line),
            }
            self.task_port, self._device_broker_url = bad_front, _mqtt(bad_broker)
        self.broker = self._broker("broker", broker)
        self.region_brokers = {
            region: self._broker(f"broker-{region}", port)
            for region, port in zip(own_broker, more[count:], strict=True)
        }
        ports = ("--front-port", str(self.front_port), "--api-port", str(api))
        data = () if "--data" in server_options else ("--data", "digits")
        common = ("--keys", "keys", "--insecure")
        up = ("--broker", self.broker_url, *common)
        self.server = Member("server", self.ground, "server", *ports, *data, *server_options, *up)
        self.gateways = {
            region: Member(
                f"gateway-{region}", self.ground, *self._gateway(region, port), *gateway_options, *common
            )
            for region, port in zip(self.regions, more[:count], strict=True)
        }
        self.devices = {
            device.name: Member(
                f"device-{device.name}",
                self.ground,
                *self._device(n, device),
                *common,
                machine=device.machine,
            )
            for n, device in enumerate(devices)
        }
        self.mqtt = Observer(self.broker_url, self.check_alive)

    def _broker(self, name: str, port: int) -> Member:
        options = ("--port", str(port), "--insecure", "--state", name)
        return Member(name, self.ground, "broker", *options)

    def _gateway(self, region: str, port: int) -> tuple[str, ...]:
        where = ("--api-port", str(port), "--server", self.server_url)
        above = self._parents.get(region)
        brokers = ("--broker", self.broker_of(region))
        parent_broker = self.broker_of(above) if above else self.broker_url
        parent = ("--parent", self.gateway_urls[above]) if above else ()
        front = ("--front-port", str(self._front_ports[region]), "--front-address", self.fronts[region])
        return (
            "gateway",
            "--region",
            region,
            *where,
            *front,
            *parent,
            *brokers,
            "--parent-broker",
            parent_broker,
        )

    def _device(self, index: int, device: Device) -> tuple[str, ...]:
        partition = device.partition or f"{index}/{len(self.specs)}"
        who = ("--name", device.name, "--region", device.region)
        servers = (
            f"127.0.0.1:{self.task_port}",
            *(self.fronts[region] for region in self.upward(device.region)),
        )
        where = tuple(part for server in servers for part in ("--server", server))
        broker = self.broker_of(device.region, at_the_top=self._device_broker_url)
        data = ("--data", device.data, "--partition", partition)
        return ("device", *who, *where, "--broker", broker, *data, *device.options)

    def broker_of(self, region: str, *, at_the_top: str | None = None) -> str:
        """Return the broker of a region: its own, or that of the nearest above it that has one."""
        own = (self.region_broker_urls[one] for one in self.upward(region) if one in self.region_broker_urls)
        return next(own, at_the_top or self.broker_url)

    def upward(self, region: str) -> tuple[str, ...]:
        """Return a region and those above it."""
        above = self._parents.get(region)
        return (region, *(self.upward(above) if above else ()))

    @property
    def gate(self) -> Gate:
        """What stands between the devices and the server's front."""
        return self.gate_of(CENTRAL)

    def gate_of(self, tier: str) -> Gate:
        """Return what stands before a tier's front."""
        assert tier in self._gates, "a federation has gates if it is asked for them: gated=True"
        return self._gates[tier]

    def trained(self, device: str, task: str, number: int) -> int:
        """Return how often a device has trained in a round of a task, by its log."""
        said = self.devices[device].said().partition(f"task {task}:")[2]
        return said.count(f"round {number}: trained on")

    def hold_update(self, device: str, task: str, number: int, *, tier: str = CENTRAL) -> Held:
        """Hold a device's update of a round before its tier's front: the round can't end without it.

        Asked for before the task is submitted it is held however slow the test is.
        """
        # It logs that it has trained before it uploads what it has trained.
        return self.gate_of(tier).hold(
            self.devices[device],
            "push-messages",
            when=lambda: self.trained(device, task, number) > 0,
        )

    @property
    def members(self) -> list[Member]:
        """All processes that belong to it, the brokers first."""
        return [*self.brokers, self.server, *self.gateways.values(), *self.devices.values()]

    @property
    def brokers(self) -> list[Member]:
        """All brokers, the server's first."""
        return [self.broker, *self.region_brokers.values()]

    async def __aenter__(self) -> Federation:
        try:
            await self._start()
        except BaseException as error:
            await self._abandon(error)
            raise
        return self

    async def __aexit__(self, exc_type: object, exc: BaseException | None, tb: object) -> None:
        if exc is not None:
            await self._abandon(exc)
            return
        try:
            await self._leave()
        except BaseException as error:
            await self._abandon(error)
            raise

    async def _start(self) -> None:
        make_keys(self.keys, self.regions)
        for broker in self.brokers:
            broker.start()
        for link in self.links.values():
            await link.__aenter__()
        await self.mqtt.__aenter__()
        await self.mqtt.connected(START_S)
        for url in self.region_broker_urls.values():  # gateways wait for theirs for five seconds
            async with Observer(url, self.check_alive) as region:
                await region.connected(START_S)
        for gate in self._gates.values():
            await gate.__aenter__()
        self.server.start()
        for gateway in self.gateways.values():
            gateway.start()
        for name, device in self.devices.items():
            if self.specs[name].starts:
                device.start()
        await self.all_online()

    async def _leave(self) -> None:
        running = [member for member in self.members if member.running]
        ports = sorted({*self._ports.numbers, *listening_ports(self.ground.processes())})
        # Devices first, then who is farthest below: their gateway still says above that they have left.
        below = {gateway: len(self.upward(region)) for region, gateway in self.gateways.items()}
        depth = {one: below.get(one, 0) for one in running if one not in self.brokers}
        depth |= dict.fromkeys(set(running) & set(self.devices.values()), len(below) + 1)
        codes: list[int] = []
        for _, group in groupby(sorted(depth, key=depth.__getitem__, reverse=True), key=depth.__getitem__):
            leaving = list(group)
            codes += await asyncio.gather(*(one.stop() for one in leaving))
            await self._seen_to_leave(leaving)
        await self._unwatch()
        for url in (self.broker_url, *self.region_broker_urls.values()):
            await self._assert_all_offline(url)
        codes += [await broker.stop() for broker in self.brokers if broker in running]
        assert set(codes) <= {0}, f"exit codes {codes} of {[member.name for member in running]} after SIGTERM"
        deadline = time.monotonic() + 60
        while left := [*self.ground.residue(), *(f"port {port}" for port in listened(ports))]:
            assert time.monotonic() < deadline, f"left behind: {left}"
            await asyncio.sleep(0.1)
        self._ports.release()
        shutil.rmtree(self.folder)

    async def _seen_to_leave(self, members: list[Member]) -> None:
        if not self.broker.running:
            return
        for topic in map(self._states.__getitem__, members):
            # What a region's own broker was told its gateway brings here, and it may not leave before.
            await self.mqtt.until(
                lambda topic=topic: self.mqtt.latest.get(topic, {}).get("state") != "online",
                f"{topic}: it has left",
            )

    @property
    def _states(self) -> dict[Member, str]:
        """The topics on which members say whether they are there."""
        said = {self.server: "central/state"}
        said |= {one: f"{region}/gateway/state" for region, one in self.gateways.items()}
        return said | {one: f"{self.specs[name].path}/state" for name, one in self.devices.items()}

    async def _assert_all_offline(self, url: str) -> None:
        if not any(broker.running and url.rpartition(":")[2] in broker.arguments for broker in self.brokers):
            return
        # A farewell that was cut, or not confirmed in time, leaves it to the will.
        deadline = time.monotonic() + 30
        while here := [
            topic
            for topic, said in (await retained(url)).items()
            if topic.endswith("/state") and said["state"] == "online"
        ]:
            assert time.monotonic() < deadline, f"said to be online after everybody has left: {here}"
            await asyncio.sleep(0.1)

    async def _abandon(self, error: BaseException) -> None:
        error.add_note(self.last_words())
        await self._unwatch()
        for member in reversed(self.members):
            member.wanted = False
        await asyncio.to_thread(self.ground.clear)
        self._ports.release()

    async def _unwatch(self) -> None:
        await self.mqtt.__aexit__()
        for link in self.links.values():
            await link.__aexit__()
        for gate in self._gates.values():
            await gate.__aexit__()

    def check_alive(self) -> None:
        """Fail if a process has ended by itself."""
        fallen = [member for member in self.members if member.fell]
        assert not fallen, "ended by itself: " + "\n".join(member.last_words() for member in fallen)

    def last_words(self) -> str:
        """Return the ends of all logs."""
        logs = [member.last_words() for member in self.members if member.log.exists()]
        for name in ("superlink", "apps"):
            log = self.folder / "runs" / ".superlink" / f"{name}.log"
            if log.exists():
                logs.append(f"--- {name}\n" + "\n".join(log.read_text().splitlines()[-25:]))
        return "\n".join(logs)

    async def cut_broker(self) -> None:
        """Kill the server's broker, and return once its command has ended because of that."""
        for mosquitto in self.broker.descendants():
            mosquitto.kill()
        self.broker.wanted = False
        assert await self.broker.ended(within_s=60) != 0, "the command ends with its broker, and says so"

    async def all_online(self) -> None:
        """Return once MQTT shows everybody who runs."""
        away = {device for device in self.devices.values() if not device.running}
        for member, topic in self._states.items():
            if member not in away:
                await self.mqtt.field(topic, "state", "online", within_s=START_S)

    def execution(self, device: str, task: str) -> str:
        """Return the topic of a task's execution on a device, without the base."""
        return f"{self.specs[device].path}/tasks/{task}/execution"

    def task(
        self, name: str, *, regions: tuple[str, ...] | None = None, **sections: Mapping[str, Any]
    ) -> str:
        """Write a small task on digits and return its file's name; sections are merged into the defaults."""
        here = [device for device in self.specs.values() if regions is None or device.region in regions]
        count = sum(1 for device in here if device.starts)
        value: dict[str, Any] = {
            "task": name,
            "regions": list(regions or self.regions),
            "server": {"address": f"127.0.0.1:{self.task_port}", "tls": False},
            "model": {"name": "softmax"},
            "data": {"name": "digits", "shape": [1, 8, 8], "classes": 10},
            "train": {"rounds": 2, "batch_size": 16, "learning_rate": 0.05, "momentum": 0.9, "seed": 7},
            "participants": {"minimum": count, "quorum": 1.0, "deadline_s": 90.0},
            "evaluate": {"on": ["server"], "every": 1},
        }
        for section, fields in sections.items():
            value[section] = {**value.get(section, {}), **fields}
        (self.folder / f"{name}.yaml").write_text(json.dumps(value, indent=1))  # JSON is YAML
        return f"{name}.yaml"

    async def operator(self, *arguments: str, timeout_s: float = 150.0) -> Finished:
        """Run an operator's command against the server of this federation."""
        more = ["--server", self.server_url, "--keys", "keys"]
        if arguments[:2] == ("task", "run"):
            more += ["--broker", self.broker_url]
        return await self.ground.command(*arguments, *more, timeout_s=timeout_s)

    async def submit(self, name: str, **options: Any) -> str:
        """Write a task, do what `trellis task run --no-watch` does with it, and return its name."""
        task = delivery.read_signed(self.folder / self.task(name, **options), self.keys)
        await delivery.deliver(task, self.server_url, {}, self.keys)
        return name

    async def logs(self, task: str, *options: str, saying: Collection[str], within_s: float = 60.0) -> str:
        """Return what `trellis logs` prints once it says all of `saying`: lines take a while to come."""
        deadline = time.monotonic() + within_s
        while True:
            done = await self.operator("logs", task, *options)
            assert done.code == 0, done
            missing = [words for words in saying if words not in done.out]
            if not missing:
                return done.out
            assert time.monotonic() < deadline, f"not within {within_s:g} s: {missing} in\n{done.out}"

    async def view(self, task: str) -> dict[str, Any]:
        """Return the server's account of a task."""
        async with ServiceClient(self.server_url, tls=None) as client:
            return await client.get(f"/v1/tasks/{task}")

    async def until(
        self, task: str, holds: Callable[[dict[str, Any]], bool], what: str, *, within_s: float = 90.0
    ) -> dict[str, Any]:
        """Return the server's account once `holds` holds of it; a server that is away is waited for."""
        deadline = time.monotonic() + within_s
        view: dict[str, Any] = {}
        while True:
            try:
                view = await self.view(task)
                if holds(view):
                    return view
            except TrellisError as error:
                view = {"error": str(error)}
            assert time.monotonic() < deadline, f"task {task}, not within {within_s:g} s: {what}; {view}"
            self.check_alive()
            await asyncio.sleep(0.1)

    async def rounds_done(self, task: str, count: int, *, within_s: float = 90.0) -> dict[str, Any]:
        """Return the account once so many rounds are over."""
        return await self.until(
            task, lambda view: len(view["history"]) >= count, f"{count} rounds done", within_s=within_s
        )

    async def ended(self, task: str, state: str = "succeeded", *, within_s: float = 150.0) -> dict[str, Any]:
        """Return the account once the task has ended, which must be in `state`."""
        view = await self.until(task, lambda one: one["state"] in ENDED, "ended", within_s=within_s)
        assert view["state"] == state, f"task {task}: {view['state']}, {view['reason']}"
        return view

    async def model(self, task: str) -> Path:
        """Return the trained model's file, fetched over HTTP."""
        file = self.folder / f"{task}.safetensors"
        async with ServiceClient(self.server_url, tls=None) as client:
            await client.download(f"/v1/tasks/{task}/model", file)
        return file


def _mqtt(port: int) -> str:
    return f"mqtt://127.0.0.1:{port}"
