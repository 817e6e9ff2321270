"""A whole Trellis federation for a benchmark: broker, server, gateway and devices, each a real process.

    with Federation(devices=2) as fleet:
        fleet.run_task("task", rounds=5)
        seconds = fleet.round_seconds("task")

Plain connections on loopback, one region, the benchmarks' model and data. Where the wire is to be counted,
devices reach broker and front through proxies.
"""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import workload
from ground import Ended, Ground, Process, free_ports, listens, stop_if_asked
from observer import Observer
from wire import CountingProxy, HttpCounts, MqttCounts

from trellis.cli.fleet_keys import make_keys

REGION = "eu-1"
START_S = 120.0
ROUND_S = 60.0


class Federation:
    """One federation from `__enter__`, where all are online, to `__exit__`, where nothing is left.

    Args:
        devices: How many; each has a file of its own.
        source: The NPZ file that their samples come from; None takes MNIST if it is there, else random ones.
        counted: Put proxies that count between the devices and the others.
        environment: Variables that all processes get.
    """

    def __init__(
        self,
        *,
        devices: int,
        source: Path | None = None,
        counted: bool = False,
        environment: dict[str, str] | None = None,
    ) -> None:
        self.ground = Ground()
        self._stack = ExitStack()
        self._environment = environment or {}
        self._files = workload.write_data(self.ground.folder, devices, source)
        self.broker_port, self.front_port, api, gateway = free_ports(4)
        self.server_url, self.gateway_url = f"http://127.0.0.1:{api}", f"http://127.0.0.1:{gateway}"
        self.mqtt_wire = CountingProxy(self.broker_port, MqttCounts()) if counted else None
        self.front_wire = CountingProxy(self.front_port, HttpCounts()) if counted else None
        self.observer = Observer(self.broker_port)
        self.broker = self.ground.trellis(
            "broker", "broker", "--port", str(self.broker_port), "--insecure", "--state", "broker"
        )
        ports = ("--front-port", str(self.front_port), "--api-port", str(api))
        self.server = self._member("server", "server", *ports)
        own = ("--region", REGION, "--api-port", str(gateway), "--server", self.server_url)
        self.gateway = self._member("gateway", "gateway", *own)
        self.devices: list[Process] = []

    def __enter__(self) -> Self:
        self._stack.enter_context(self.ground)
        try:
            self._start()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _start(self) -> None:
        make_keys(self.ground.folder / "keys", [REGION])
        self.broker.start()
        self.ground.until(self._broker_listens, "the broker", within_s=START_S)
        self._stack.enter_context(self.observer)
        for wire in (self.mqtt_wire, self.front_wire):
            if wire is not None:
                self._stack.enter_context(wire)
        self.server.start()
        self.gateway.start()
        self.devices = [self._device(index, file).start() for index, file in enumerate(self._files)]
        for topic in (
            "central/state",
            f"{REGION}/gateway/state",
            *map(device_topic, range(len(self.devices))),
        ):
            self.until_field(topic, "state", "online")

    def _member(self, name: str, command: str, *arguments: str, broker: int | None = None) -> Process:
        url = f"mqtt://127.0.0.1:{broker or self.broker_port}"
        common = ("--keys", "keys", "--broker", url, "--insecure")
        return self.ground.trellis(name, command, *arguments, *common, environment=self._environment)

    def _device(self, index: int, file: Path) -> Process:
        front = self.front_wire.port if self.front_wire is not None else self.front_port
        own = ("--name", f"d{index}", "--region", REGION, "--server", f"127.0.0.1:{front}")
        data = ("--data", f"{workload.DATA_NAME}={file}")
        broker = self.mqtt_wire.port if self.mqtt_wire is not None else None
        return self._member(f"device-{index}", "device", *own, *data, broker=broker)

    def _broker_listens(self) -> bool:
        self.check_alive()
        return listens(self.broker_port)

    def until_field(self, topic: str, name: str, value: object, *, within_s: float = START_S) -> float:
        """Return the monotonic time at which the topic's present payload had that value in that field."""

        def holds() -> bool:
            self.check_alive()
            return self.observer.field(topic, name) == value

        return self.ground.until(holds, f"{topic}: {name} = {value}", within_s=within_s)

    def check_alive(self) -> None:
        """Fail if a process has ended by itself, or somebody wants us to stop."""
        stop_if_asked()
        for process in (self.broker, self.server, self.gateway, *self.devices):
            if process.started and not process.running and not process.killed:
                raise Ended(f"{process.name} ended by itself\n{process.last_words()}")

    def post(self, task: str, *, rounds: int, **sections: Any) -> None:
        """Sign a task and post it to the server and the gateway; returns when both have it."""
        front = self.front_wire.port if self.front_wire is not None else self.front_port
        count = len(self.devices)
        value: dict[str, Any] = {
            "task": task,
            "regions": [REGION],
            "server": {"address": f"127.0.0.1:{front}", "tls": False},
            "model": {"name": workload.MODEL},
            "data": {"name": workload.DATA_NAME, "shape": list(workload.SHAPE), "classes": workload.CLASSES},
            "train": {
                "rounds": rounds,
                "local_epochs": 1,
                "batch_size": workload.BATCH,
                "learning_rate": workload.LEARNING_RATE,
                "seed": workload.SEED,
            },
            "participants": {"minimum": count, "quorum": 1.0, "deadline_s": 120.0},
            "evaluate": {"on": [], "every": 1},
        }
        for section, fields in sections.items():
            value[section] = {**value.get(section, {}), **fields}
        file = self.ground.folder / f"{task}.yaml"
        file.write_text(json.dumps(value))  # JSON is YAML
        options = ("--server", self.server_url, "--keys", "keys", "--broker", self.broker_url, "--no-watch")
        posting = self.ground.trellis(f"post-{task}", "task", "run", file.name, *options).start()
        if posting.wait(START_S) != 0:
            raise Ended(f"task {task} was not taken\n{posting.last_words()}")

    def run_task(self, task: str, *, rounds: int, **sections: Any) -> None:
        """Post a task; returns when it has succeeded."""
        self.post(task, rounds=rounds, **sections)
        self.until_ended(task, rounds)

    def cancel(self, task: str) -> None:
        """Call a task off; returns when it has ended."""
        options = ("--server", self.server_url, "--keys", "keys")
        calling = self.ground.trellis(f"cancel-{task}", "task", "cancel", task, *options).start()
        if calling.wait(START_S) != 0:
            raise Ended(f"task {task} was not called off\n{calling.last_words()}")
        self.until_field(f"central/tasks/{task}/state", "state", "canceled")

    def until_ended(self, task: str, rounds: int) -> None:
        """Return when a task has succeeded; `Ended` if it failed."""
        topic = f"central/tasks/{task}/state"

        def holds() -> bool:
            self.check_alive()
            return self.observer.field(topic, "state") in ("succeeded", "failed", "canceled")

        self.ground.until(holds, f"the end of task {task}", within_s=START_S + rounds * ROUND_S)
        if self.observer.field(topic, "state") != "succeeded":
            raise Ended(f"task {task} failed: {self.observer.field(topic, 'reason')}")

    def round_ends(self, task: str) -> dict[int, float]:
        """Return the server's time, in seconds, of each round's end."""
        said = self.observer.said(f"central/tasks/{task}/round")
        return {one["round"]: one["ts"] / 1000 for one in said if one.get("phase") == "done"}

    @property
    def broker_url(self) -> str:
        """Where the broker listens, past any proxy."""
        return f"mqtt://127.0.0.1:{self.broker_port}"


def device_topic(index: int) -> str:
    """Return the topic of a device's state, without the base."""
    return f"{REGION}/devices/d{index}/state"


def execution_topic(index: int, task: str) -> str:
    """Return the topic of a task's execution on a device, without the base."""
    return f"{REGION}/devices/d{index}/tasks/{task}/execution"
