"""A fleet with TLS and access lists everywhere, on two machines: a centre and an edge.

The broker and the server are here, the gateway and the devices at the network's other end. Every process
holds a copy of its own key folder and of nothing else, as its machine would.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import httpx
from machines import TRELLIS, Ended, Machine, Running, until
from namespaces import Network
from shipped_broker import configuration, program

from trellis.keys.certificates import LEAF_DAYS
from trellis.loopback import free_ports
from trellis.tls import TlsFiles, client_context

REGION = "eu-1"
OTHER = "us-1"
START_S = 90.0


class SecureFleet:
    """A broker, a server, the gateway of `eu-1` and its two devices; keys for a device of `us-1` beside them.

    Args:
        folder: Empty; gets keys, logs and states.
        network: Its two ends.
        own_broker: Whether `trellis broker` is the broker, instead of mosquitto with the shipped file.
        bridged: Whether the region has a broker of its own, at the edge.
        fronts: Whether gateways have fronts; then gateway and device `d3` of `us-1` are there, too, and where
            the region is bridged they stand below it.
        light: Whether `d3` trains by ONNX Runtime.
        days: How long the certificates of server, broker, region and devices hold.
    """

    def __init__(
        self,
        folder: Path,
        network: Network,
        *,
        own_broker: bool = False,
        bridged: bool = False,
        fronts: bool = False,
        light: bool = False,
        days: int = LEAF_DAYS,
    ) -> None:
        self.network, self.folder = network, folder
        self.centre, self.edge = Machine(folder / "centre"), Machine(folder / "edge", network.at_edge)
        self.keys = folder / "keys"  # stays with whoever adds machines
        self._own_broker, self._bridged, self._fronts = own_broker, bridged, fronts
        self._days = ("--days", str(days))
        self._light = ("--backend", "onnx") if light else ()
        self._stack = contextlib.ExitStack()
        names = ("broker", "region", "front", "api")
        self.ports = dict(zip(names, free_ports(len(names), network.centre), strict=True))
        self.running: dict[str, Running] = {}
        self.front_ports = dict(zip((REGION, OTHER), free_ports(2, network.centre), strict=True))

    @property
    def broker_url(self) -> str:
        return f"mqtts://{self.network.centre}:{self.ports['broker']}"

    @property
    def region_broker_url(self) -> str:
        """The broker of the devices: the region's own where it has one."""
        return f"mqtts://{self.network.edge}:{self.ports['region']}" if self._bridged else self.broker_url

    @property
    def server_url(self) -> str:
        return f"https://{self.network.centre}:{self.ports['api']}"

    @property
    def front(self) -> str:
        """`host:port` where devices reach Flower."""
        return f"{self.network.centre}:{self.ports['front']}"

    def front_of(self, region: str) -> str:
        """Return where devices of a region reach its own front."""
        return f"{self.network.edge}:{self.front_ports[region]}"

    @property
    def gateway_url(self) -> str:
        return f"https://{self.network.edge}:{self.gateway_port}"

    def __enter__(self) -> Self:
        with self._stack:
            self._make_keys()
            self.start_broker()
            self._start_services()
            started = [self._launch(f"d{number}", "--partition", f"{number - 1}/2") for number in (1, 2)]
            if self._fronts:
                started.append(self._launch("d3", "--partition", "0/3", *self._light, region=OTHER))
            for device in started:
                device.says("is ready in region", within_s=START_S)
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is not None:
            error.add_note(self.last_words())
        with self._stack:
            # Brokers go last, so that the others can say goodbye.
            for name, one in sorted(self.running.items(), key=lambda named: "broker" in named[0]):
                code = one.stop()
                assert "broker" in name or code == 0, one.last_words()

    def _make_keys(self) -> None:
        centre, edge = self.network.centre, self.network.edge
        self.administrate("init", str(self.keys), "--host", centre, *self._days)
        self.administrate("gateway", REGION, "--host", edge, "--keys", str(self.keys), *self._days)
        # Without a gateway to start this one's certificate names no host but its own loopback.
        hosts = ("--host", edge) if self._fronts else ()
        self.administrate("gateway", OTHER, *hosts, "--keys", str(self.keys))
        for name, region in (("d1", REGION), ("d2", REGION), ("d3", OTHER), ("d4", REGION)):
            self.administrate("device", name, "--region", region, "--keys", str(self.keys), *self._days)
        if self._bridged:
            below = ("--below", f"{OTHER}={REGION}") if self._fronts else ()
            self.administrate("acl", str(self.keys), "--bridged", REGION, *below)

    def administrate(self, *arguments: str) -> str:
        """Run `trellis keys ARGUMENTS`, and return what it says."""
        done = self.centre.run("keys", *arguments)
        assert done.code == 0, done.err
        return done.out

    def issued(self, *parts: str, to: Machine) -> str:
        """Copy an identity's folder to its machine, and return its name there."""
        name = "-".join(("keys", *parts))
        shutil.copytree(self.keys.joinpath(*parts), to.folder / name, dirs_exist_ok=True)
        return name

    def start(self, name: str, machine: Machine, *command: str) -> Running:
        """Start a program, which is ended with the fleet."""
        running = self.running[name] = Running(name, machine, command)
        self._stack.callback(running.stop)
        return running

    def start_broker(self) -> None:
        host, port = self.network.centre, self.ports["broker"]
        identity = self.centre.folder / self.issued("broker", to=self.centre)
        if self._own_broker:
            command = ("broker", "--keys", identity.name, "--host", host, "--port", str(port))
            self.start("broker", self.centre, *TRELLIS, *command).says("mosquitto listens at")
        else:
            self._start_mosquitto("broker", self.centre, identity, host, port)
        if self._bridged:
            # As deploy/ says: with the gateway's keys, on whose machine it runs.
            identity = self.edge.folder / self.issued("gateways", REGION, to=self.edge)
            shutil.copy(self.keys / "broker" / "acl", identity)
            self._start_mosquitto(
                "region-broker", self.edge, identity, self.network.edge, self.ports["region"]
            )

    def _start_mosquitto(self, name: str, machine: Machine, identity: Path, host: str, port: int) -> None:
        state = machine.folder / f"{name}-state"
        state.mkdir()
        (state / "mosquitto.conf").write_text(configuration(identity, state, host, port), encoding="utf-8")
        command = (program("mosquitto"), "-c", str(state / "mosquitto.conf"))
        self.start(name, machine, *command).says("running")

    def _start_services(self) -> None:
        host = self.network.centre
        ports = ("--front-port", str(self.ports["front"]), "--api-port", str(self.ports["api"]))
        keys = self.issued("server", to=self.centre)
        command = ("server", "--keys", keys, "--broker", self.broker_url, "--host", host, *ports)
        server = self.start("server", self.centre, *TRELLIS, *command, "--data", "digits")
        gateways = [self._start_gateway("gateway", REGION, self.broker_url)]
        listens = gateways[0].says(r"gateway listens api=", within_s=START_S)
        self.gateway_port = int(listens.rpartition(":")[2])
        if self._fronts:
            parent = ("--parent", self.gateway_url) if self._bridged else ()
            gateways.append(self._start_gateway("other-gateway", OTHER, self.region_broker_url, *parent))
        for gateway in gateways:
            gateway.says("gateway serves", within_s=START_S)
        server.says("central_server.*API", within_s=START_S)
        until(lambda: self._is_well() or None, "the server is well", within_s=START_S)

    def _start_gateway(self, name: str, region: str, parent_broker: str, *more: str) -> Running:
        keys = self.issued("gateways", region, to=self.edge)
        brokers = ("--broker", self.region_broker_url, "--parent-broker", parent_broker)
        where = ("--server", self.server_url, "--host", self.network.edge, "--api-port", "0")
        front = ("--front-port", str(self.front_ports[region])) if self._fronts else ()
        command = ("gateway", "--region", region, "--keys", keys, *brokers, *where, *front, *more)
        return self.start(name, self.edge, *TRELLIS, *command)

    def _is_well(self) -> bool:
        try:
            with self.operator_http() as http:
                return bool(http.get(f"{self.server_url}/healthz").json()["status"] == "ok")
        except httpx.TransportError:
            return False

    def device_command(self, name: str, *more: str, keys: str, region: str = REGION) -> tuple[str, ...]:
        """Return the arguments of `trellis` that make a device of this fleet."""
        who = ("--name", name, "--region", region, "--keys", keys, "--state", f"state-{keys}")
        where: tuple[str, ...] = ("--broker", self.region_broker_url, "--server", self.front)
        if self._fronts:
            where += ("--server", self.front_of(region))
        return ("device", *who, *where, "--data", "digits", *more)

    def start_device(self, name: str, *more: str) -> Running:
        """Start a device of `eu-1`, and return once it is ready."""
        device = self._launch(name, *more)
        device.says("is ready in region", within_s=START_S)
        return device

    def _launch(self, name: str, *more: str, region: str = REGION) -> Running:
        keys = self.issued("devices", region, name, to=self.edge)
        command = self.device_command(name, *more, keys=keys, region=region)
        return self.start(name, self.edge, *TRELLIS, *command)

    def operator(self, *arguments: str, within_s: float = 150.0) -> Ended:
        """Run an operator's command, with the operator's keys alone."""
        keys = self.issued("operator", to=self.centre)
        return self.centre.run(*arguments, "--keys", keys, within_s=within_s)

    def task(self, name: str, **sections: Any) -> dict[str, Any]:
        """Return a small task on digits for this fleet."""
        value: dict[str, Any] = {
            "task": name,
            "regions": [REGION],
            "server": {"address": self.front, "tls": True},
            "model": {"name": "softmax"},
            "data": {"name": "digits", "shape": [1, 8, 8], "classes": 10},
            "train": {"rounds": 2, "batch_size": 16, "learning_rate": 0.05, "momentum": 0.9, "seed": 7},
            "participants": {"minimum": 2, "quorum": 1.0, "deadline_s": 90.0},
            "evaluate": {"on": ["server"], "every": 1},
        }
        for section, content in sections.items():
            old = value.get(section)
            value[section] = {**old, **content} if isinstance(old, dict) else content
        return value

    def task_file(self, task: dict[str, Any]) -> str:
        """Write a task, and return its file's name at the centre."""
        name = f"{task['task']}.yaml"
        (self.centre.folder / name).write_text(json.dumps(task))  # JSON is YAML
        return name

    @contextlib.contextmanager
    def operator_http(self) -> Iterator[httpx.Client]:
        """Plain HTTP with the operator's certificate, below what our own client would refuse to send."""
        with httpx.Client(
            verify=client_context(tls_files(self.keys / "operator")), trust_env=False, timeout=60
        ) as http:
            yield http

    def execution(self, task: str, device: str) -> dict[str, Any]:
        """Return what the gateway tells of a device's execution; {} if nothing."""
        with self.operator_http() as http:
            answer = http.get(f"{self.gateway_url}/v1/tasks/{task}")
        found = {one["device"]: one["execution"] for one in answer.json().get("devices", ())}
        return dict(found.get(device, {}))

    def last_words(self) -> str:
        """Return the ends of all logs."""
        return "\n".join(one.last_words() for one in self.running.values())


def tls_files(identity: Path) -> TlsFiles:
    """Return the TLS files of an identity's folder."""
    return TlsFiles(ca=identity / "ca.crt", cert=identity / "tls.crt", key=identity / "tls.key")
