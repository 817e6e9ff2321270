"""A Trellis federation of several regions: each has a gateway that can average, and one process of devices.

    with Regions(5, devices=50, data="digits", work=WORK) as fleet:
        fleet.run("task", rounds=5, tier="regional")

The server's MQTT goes through a proxy that counts. Its front is reached past a proxy or through it: what is
timed is not slowed down by counting.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from fleet import Fleet
from ground import Process
from wire import CountingProxy

from trellis.identifiers import replica_names
from trellis.loopback import free_ports

DEADLINE_S = 600.0

Tier = Literal["central", "regional"]


class Regions(Fleet):
    """One federation from `__enter__`, where all are online, to `__exit__`, where nothing is left.

    Args:
        count: How many regions.
        devices: How many devices in all, a multiple of `count`.
        data: What all devices share parts of, as `--data` takes it; the server evaluates on it.
        split: How it is cut into parts, as `--split` takes it.
        work: The descriptor's `model`, `data` and `train`.

    Attributes:
        server: Once started.
        gateways: Once started, one a region.
    """

    server: Process
    gateways: Sequence[Process]

    def __init__(
        self, count: int, *, devices: int, data: str, work: dict[str, Any], split: str = "iid"
    ) -> None:
        super().__init__([f"r{number}" for number in range(1, count + 1)], counted=True)
        self.each = devices // count
        self._work, self._data, self._split = work, data, split
        self._fronts = free_ports(count)
        self._started: list[Process] = []

    @property
    def wires(self) -> tuple[CountingProxy, CountingProxy]:
        """The proxies of the server's MQTT and of its front."""
        if self.mqtt_wire is None or self.front_wire is None:
            raise RuntimeError("a federation of regions counts")
        return self.mqtt_wire, self.front_wire

    def start(self) -> Sequence[str]:
        """Start all but the broker; return the topics on which they say that they are online."""
        numbers = range(len(self.regions))
        self.server = self.server_process(self.counted_broker_url, "--data", self._data)
        self.gateways = [self._gateway(number) for number in numbers]
        self._started = [self.server, *self.gateways, *(self._crowd(number) for number in numbers)]
        for process in self._started:
            process.start()
        crowd = replica_names("d", self.each)
        names = ["gateway", *(f"devices/{name}" for name in crowd)]
        return [f"{region}/{name}/state" for region in self.regions for name in names]

    @property
    def processes(self) -> Sequence[Process]:
        """All of them that must not end by themselves."""
        return [self.broker, *self._started]

    def descriptor(self) -> dict[str, Any]:
        """Return what all tasks have alike."""
        return {"participants": {"quorum": 1.0, "deadline_s": DEADLINE_S}, **self._work}

    def begin(self, task: str, *, rounds: int, tier: Tier, counted: bool = False, **sections: Any) -> None:
        """Post a task for all devices; returns when server and gateways have it.

        Args:
            task: Its name.
            rounds: At the centre.
            tier: Where devices' updates are averaged first.
            counted: Have all that reaches the centre's front go through the proxy.
            sections: More of the descriptor.
        """
        regions = len(self.regions)
        everybody = self.each * (1 if tier == "regional" else regions)
        above = {"minimum": regions, "maximum": regions, "quorum": 1.0, "deadline_s": DEADLINE_S}
        aggregation = {"tier": tier} | ({"participants": above} if tier == "regional" else {})
        self.post(
            task,
            rounds=rounds,
            server={"address": self.counted_front if counted else self.front},
            participants={"minimum": everybody, "maximum": everybody},
            aggregation=aggregation | sections.pop("aggregation", {}),
            **sections,
        )

    def _gateway(self, index: int) -> Process:
        region = self.regions[index]
        own = ("--region", region, "--api-port", "0", "--front-port", str(self._fronts[index]))
        above = ("--server", self.server_url)
        return self.member(f"gateway-{region}", "gateway", *own, *above, broker_url=self.broker_url)

    def _crowd(self, index: int) -> Process:
        region = self.regions[index]
        fronts = (self.front, self.counted_front, f"127.0.0.1:{self._fronts[index]}")
        servers = [word for front in fronts for word in ("--server", front)]
        part = ("--partition", f"{index * self.each}/{len(self.regions) * self.each}", "--split", self._split)
        own = ("--name", "d", "--replicas", str(self.each), "--region", region, "--data", self._data, *part)
        name = f"devices-{region}"
        return self.member(name, "device", *own, *servers, "--threads", "1", broker_url=self.broker_url)
