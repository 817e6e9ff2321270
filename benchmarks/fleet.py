"""What all Trellis federations of the benchmarks have alike: a broker, a server, an observer, and tasks.

Plain connections on loopback. `federation` and `regions` add gateways and devices.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, Self

from ground import Ended, Ground, Process, listens, stop_if_asked
from observer import Observer
from wire import CountingProxy, HttpCounts, MqttCounts

from trellis.cli.fleet_keys import make_keys
from trellis.loopback import free_ports

START_S = 120.0
ROUND_S = 60.0


class Fleet(ABC):
    """A federation from `__enter__`, where all are online, to `__exit__`, where nothing is left.

    Args:
        regions: The regions that it has keys for.
        counted: Have proxies that count before the broker and the front; who goes through them is the
            federation's matter.
        environment: Variables that all processes get.
    """

    def __init__(
        self, regions: Sequence[str], *, counted: bool = False, environment: dict[str, str] | None = None
    ) -> None:
        self.regions = list(regions)
        self.ground = Ground()
        self._stack = ExitStack()
        self._environment = environment or {}
        self.broker_port, self.front_port, self._api_port = free_ports(3)
        self.server_url = f"http://127.0.0.1:{self._api_port}"
        self.mqtt_wire = CountingProxy(self.broker_port, MqttCounts()) if counted else None
        self.front_wire = CountingProxy(self.front_port, HttpCounts()) if counted else None
        self.observer = Observer(self.broker_port)
        self.broker = self.ground.trellis(
            "broker", "broker", "--port", str(self.broker_port), "--insecure", "--state", "broker"
        )

    def __enter__(self) -> Self:
        self._stack.enter_context(self.ground)
        try:
            make_keys(self.ground.folder / "keys", self.regions)
            self.broker.start()
            self.ground.until(self._broker_listens, "the broker", within_s=START_S)
            self._stack.enter_context(self.observer)
            for wire in (self.mqtt_wire, self.front_wire):
                if wire is not None:
                    self._stack.enter_context(wire)
            for topic in ("central/state", *self.start()):
                self.until_field(topic, "state", "online")
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @abstractmethod
    def start(self) -> Sequence[str]:
        """Start all but the broker; return the topics on which they say that they are online."""

    @property
    @abstractmethod
    def processes(self) -> Sequence[Process]:
        """All of them that must not end by themselves."""

    @abstractmethod
    def descriptor(self) -> dict[str, Any]:
        """Return what all tasks have alike: model, data, training and participants."""

    @property
    def broker_url(self) -> str:
        """Where the broker listens, past any proxy."""
        return f"mqtt://127.0.0.1:{self.broker_port}"

    @property
    def front(self) -> str:
        """The server's Flower front, past any proxy."""
        return f"127.0.0.1:{self.front_port}"

    @property
    def counted_front(self) -> str:
        """The same as devices of a counted federation reach it."""
        return self.front if self.front_wire is None else f"127.0.0.1:{self.front_wire.port}"

    @property
    def counted_broker_url(self) -> str:
        """The broker through the proxy, if there is one."""
        return self.broker_url if self.mqtt_wire is None else f"mqtt://127.0.0.1:{self.mqtt_wire.port}"

    def server_process(self, broker_url: str, *options: str) -> Process:
        """Return the server, not yet started."""
        ports = ("--front-port", str(self.front_port), "--api-port", str(self._api_port))
        return self.member("server", "server", *ports, *options, broker_url=broker_url)

    def member(self, name: str, command: str, *arguments: str, broker_url: str) -> Process:
        """Return a server, a gateway or devices, not yet started."""
        common = ("--keys", "keys", "--broker", broker_url, "--insecure")
        return self.ground.trellis(name, command, *arguments, *common, environment=self._environment)

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
        for process in self.processes:
            if process.started and not process.running and not process.killed:
                raise Ended(f"{process.name} ended by itself\n{process.last_words()}")

    def post(self, task: str, *, rounds: int, **sections: Any) -> None:
        """Sign a task and post it to the server and the gateways; returns when all have it."""
        value: dict[str, Any] = {
            "task": task,
            "regions": self.regions,
            "server": {"address": self.counted_front, "tls": False},
            "evaluate": {"on": [], "every": 1},
            **self.descriptor(),
        }
        value["train"] = {**value["train"], "rounds": rounds}
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

    def until_round(self, task: str, number: int, *, within_s: float) -> float:
        """Return the monotonic time at which round `number` was seen to have begun; `Ended` if none will."""
        topic = f"central/tasks/{task}/round"

        def holds() -> bool:
            self.check_alive()
            self._require_not_failed(task)
            begun = self.observer.field(topic, "round")
            return isinstance(begun, int) and begun >= number

        return self.ground.until(holds, f"round {number} of task {task}", within_s=within_s)

    def until_ended(self, task: str, rounds: int) -> None:
        """Return when a task has succeeded; `Ended` if it failed."""
        topic = f"central/tasks/{task}/state"

        def holds() -> bool:
            self.check_alive()
            self._require_not_failed(task)
            return self.observer.field(topic, "state") == "succeeded"

        self.ground.until(holds, f"the end of task {task}", within_s=START_S + rounds * ROUND_S)

    def _require_not_failed(self, task: str) -> None:
        topic = f"central/tasks/{task}/state"
        if self.observer.field(topic, "state") in ("failed", "canceled"):
            raise Ended(f"task {task} failed: {self.observer.field(topic, 'reason')}")

    def round_ends(self, task: str) -> dict[int, float]:
        """Return the server's time, in seconds, of each round's end."""
        said = self.observer.said(f"central/tasks/{task}/round")
        return {one["round"]: one["ts"] / 1000 for one in said if one.get("phase") == "done"}
