"""How soon a federation works again after one of its processes was killed.

A federation of real processes on loopback is in the midst of a task of many rounds. One process gets SIGKILL
and is started again at once with the same command; the clock runs from the kill. "Works again" means, for

device      a node of the new process has uploaded a reply in the running task: its execution on MQTT shows
            the phase `uploaded` after the device's state has shown the new boot
gateway     GET /healthz answers `ok` with the broker connected, and the retained state of the gateway that a
            client sees is `online` under a new boot
server      GET /healthz answers `ok`, the SuperLink runs, and the running task has begun and finished a
            round, which the ServerApp of a new Flower run did with all devices connected anew
server-up   of the same kill: GET /healthz answers `ok` and the SuperLink runs, whatever the task does
broker      the broker, which keeps nothing over a restart, has heard all others anew: a client that came
            after the kill is shown the retained `online` of server, gateway and each device
            (here the whole tree is killed: `trellis broker` and the mosquitto below it)

    python benchmarks/recovery.py --repeats 10 --json recovery.json
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import psutil
from federation import REGION, Federation, device_topic, execution_topic
from ground import Process, listens
from observer import Observer
from report import Rows, parser, run, show, write

TASK = "endless"
WITHIN_S = 120.0
LATE_S = 0.3
"""What the killed server had published may still be on its way for so long; no server starts within it."""
COLUMNS = ("process", "repeats", "recovery_s_median", "recovery_s_max", "recovery_s_all")


class Recovery:
    """Kills and starts again what `fleet` consists of."""

    def __init__(self, fleet: Federation) -> None:
        self._fleet = fleet
        self._http = httpx.Client(timeout=1.0, trust_env=False)

    def device(self) -> dict[str, float]:
        """Return the seconds until a device's node answers."""
        old = self._fleet.observer.field(device_topic(0), "boot_id")
        killed = self._restart(self._fleet.devices[0])

        def answers() -> bool:
            booted = self._fleet.observer.when(device_topic(0), killed, lambda p: p.get("boot_id") != old)
            if booted is None:
                return False
            uploaded = self._fleet.observer.when(
                execution_topic(0, TASK), booted, lambda p: p.get("phase") == "uploaded"
            )
            return uploaded is not None

        return {"device": self._until(answers, "the device's answer") - killed}

    def gateway(self) -> dict[str, float]:
        """Return the seconds until the gateway serves."""
        topic = f"{REGION}/gateway/state"
        old = self._fleet.observer.field(topic, "boot_id")
        killed = self._restart(self._fleet.gateway)

        def serves() -> bool:
            state = self._fleet.observer.latest.get(topic, {})
            online = state.get("state") == "online" and state.get("boot_id") != old
            return online and self._is_well(self._fleet.gateway_url)

        return {"gateway": self._until(serves, "the gateway's health") - killed}

    def server(self) -> dict[str, float]:
        """Return the seconds until the server is well, and until the task has finished a round."""
        killed = self._restart(self._fleet.server)
        up = self._until(lambda: self._is_well(self._fleet.server_url), "the server's health")
        done = self._until(lambda: self._new_round_done(killed), "a round")
        return {"server-up": up - killed, "server": done - killed}

    def broker(self) -> dict[str, float]:
        """Return the seconds until all are back at the broker."""
        broker = self._fleet.broker
        below = psutil.Process(broker.pid).children(recursive=True)
        broker.kill()
        killed = time.monotonic()
        for process in below:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        broker.start()
        self._until(lambda: listens(self._fleet.broker_port), "the broker")
        topics = ["central/state", f"{REGION}/gateway/state"]
        topics += [device_topic(index) for index in range(len(self._fleet.devices))]
        with Observer(self._fleet.broker_port) as late:
            seen = self._until(
                lambda: all(late.field(topic, "state") == "online" for topic in topics), "everybody online"
            )
        return {"broker": seen - killed}

    def settle(self) -> None:
        """Return when two more rounds are done, so that no repeat begins in the midst of the one before."""
        for _ in range(2):
            now = time.monotonic()
            self._until(lambda now=now: self._round_done(now), "a round")  # type: ignore[misc]

    def _restart(self, process: Process) -> float:
        process.kill()
        killed = time.monotonic()
        process.start()
        return killed

    def _until(self, holds: Callable[[], bool], what: str) -> float:
        def alive_and_holds() -> bool:
            self._fleet.check_alive()
            return holds()

        return self._fleet.ground.until(alive_and_holds, what, within_s=WITHIN_S)

    def _round_done(self, since: float) -> bool:
        topic = f"central/tasks/{TASK}/round"
        return self._fleet.observer.when(topic, since, lambda p: p.get("phase") == "done") is not None

    def _new_round_done(self, since: float) -> bool:
        """Whether a round was begun and ended since then: the last one may be told again."""
        topic = f"central/tasks/{TASK}/round"
        begun = self._fleet.observer.when(topic, since + LATE_S, lambda p: p.get("phase") == "train")
        return begun is not None and self._round_done(begun)

    def _is_well(self, url: str) -> bool:
        try:
            said = self._http.get(f"{url}/healthz").json()
        except httpx.TransportError:
            return False
        return bool(said.get("status") == "ok")


def measure(repeats: int, devices: int, names: list[str], source: Path | None) -> Rows:
    seconds: dict[str, list[float]] = {}
    with Federation(devices=devices, source=source) as fleet:
        fleet.post(TASK, rounds=100_000)
        recovery = Recovery(fleet)
        kills = {name: getattr(recovery, name) for name in names}
        for repeat in range(repeats):
            for kill in kills.values():
                recovery.settle()
                for what, value in kill().items():
                    seconds.setdefault(what, []).append(round(value, 3))
                    print(f"{repeat + 1}/{repeats} {what}: {value:.2f} s")
    return [
        {
            "process": what,
            "repeats": len(values),
            "recovery_s_median": round(statistics.median(values), 3),
            "recovery_s_max": max(values),
            "recovery_s_all": values,
        }
        for what, values in seconds.items()
    ]


PROCESSES = ("device", "gateway", "server", "broker")


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--repeats", type=int, default=10, help="kills of each process (default: 10)")
    options.add_argument("--devices", type=int, default=2, help="how many devices (default: 2)")
    options.add_argument("--only", default=",".join(PROCESSES), help="some of: " + ", ".join(PROCESSES))
    options.add_argument("--data", type=Path, metavar="FILE", help="an NPZ file like MNIST's")
    chosen = options.parse_args()
    names = chosen.only.split(",")
    if unknown := sorted(set(names) - set(PROCESSES)):
        options.error(f"--only: there is no {', '.join(unknown)}; there is: {', '.join(PROCESSES)}")
    if chosen.repeats < 1 or chosen.devices < 1:
        options.error("--repeats and --devices: at least 1")
    rows = measure(chosen.repeats, chosen.devices, names, chosen.data)
    show(rows, COLUMNS[:-1], title="seconds from SIGKILL to working again")
    write(rows, chosen.json)


if __name__ == "__main__":
    run(main)
