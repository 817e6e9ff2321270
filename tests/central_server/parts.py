"""What the server's tests share: signed tasks, a server on a broker in memory, stand-ins for apps."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from process_superlink import ProcessSuperLink

from central_server.service import CentralServer
from central_server.settings import ServerSettings, Timing
from central_server.store import Store
from trellis.descriptor import TaskDescriptor, parse_mapping
from trellis.envelope import Keyring, sign
from trellis.mqtt import MemoryBroker
from trellis.signing_key import SigningKey

APPS = Path(__file__).parent / "stand_in_app.py"
OPERATOR = SigningKey.generate()
WAIT_S = 60.0
"""Catches a hang, and leaves a busy machine its time."""
QUICK = Timing(broker_s=30.0, hello_s=WAIT_S, watch_s=0.1, cancel_s=1.0, leave_s=1.0, retention_s=600.0)


def descriptor(**changes: Any) -> TaskDescriptor:
    """A task that the server takes."""
    fields: dict[str, Any] = {
        "task": "digits-mlp",
        "regions": ["eu-1", "us-1"],
        "server": {"address": "127.0.0.1:8000", "tls": False},
        "model": {"name": "mlp"},
        "data": {"name": "digits", "shape": [1, 8, 8], "classes": 10},
        "train": {"rounds": 3, "learning_rate": 0.05},
    }
    return parse_mapping(fields | changes)


def signed(task: TaskDescriptor, key: SigningKey = OPERATOR) -> bytes:
    return sign(task.to_json(), key).to_bytes()


async def until(condition: Callable[[], Any], timeout_s: float = WAIT_S) -> Any:
    """Poll until `condition` returns something true; fail at the deadline."""
    deadline = time.monotonic() + timeout_s
    while True:
        found = condition()
        if isinstance(found, Awaitable):
            found = await found
        if found:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s} s: {condition}")
        await asyncio.sleep(0.02)


@dataclass
class Running:
    """A central server at work."""

    server: CentralServer
    http: httpx.AsyncClient
    broker: MemoryBroker
    runs: Path
    superlinks: list[ProcessSuperLink]

    async def post(self, task: TaskDescriptor, key: SigningKey = OPERATOR) -> httpx.Response:
        return await self.http.post("/v1/tasks", content=signed(task, key))

    def time_by(self, timing: Timing) -> None:
        """Have apps be waited for by other times from now on; who has been waited for keeps its own."""
        self.server._host.supervisor._timing = timing

    async def view(self, task: str = "digits-mlp") -> dict[str, Any]:
        answer = await self.http.get(f"/v1/tasks/{task}")
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    async def reach(self, state: str, task: str = "digits-mlp") -> dict[str, Any]:
        async def there() -> dict[str, Any] | None:
            view = await self.view(task)
            return view if view["state"] == state else None

        found: dict[str, Any] = await until(there)
        return found

    @property
    def backchannel(self) -> httpx.AsyncClient:
        environment = self.superlinks[-1].environment
        return httpx.AsyncClient(
            base_url=environment["TRELLIS_BACKCHANNEL"],
            headers={"authorization": f"Bearer {environment['TRELLIS_BACKCHANNEL_TOKEN']}"},
            trust_env=False,
            timeout=WAIT_S,
        )


class Launcher:
    """Starts central servers on one runs folder and one broker; `script` says what each next run does."""

    def __init__(self, runs: Path) -> None:
        self.runs = runs
        self.broker = MemoryBroker()
        self.script: list[str] = []
        self.superlinks: list[ProcessSuperLink] = []

    @contextlib.asynccontextmanager
    async def __call__(
        self, *, timing: Timing = QUICK, data: Mapping[str, str] | None = None, task: bytes | None = None
    ) -> AsyncIterator[Running]:
        settings = ServerSettings(
            broker_url="memory:",
            keyring=Keyring([OPERATOR.public]),
            tls=None,
            front_port=0,
            api_port=0,
            runs=self.runs,
            data=data or {},
            timing=timing,
            task=task,
        )
        stop = asyncio.Event()
        with Store(self.runs) as store:
            server = CentralServer(settings, store, self._bus, self._superlink)
            serving = asyncio.create_task(server.run(stop), name="server")
            try:
                await until(lambda: serving.done() or server.superlink_alive)
                if serving.done():
                    await serving
                async with httpx.AsyncClient(
                    base_url=server.api_url, trust_env=False, timeout=WAIT_S
                ) as http:
                    yield Running(server, http, self.broker, self.runs, self.superlinks)
            finally:
                stop.set()
                async with asyncio.timeout(WAIT_S):
                    await serving

    def _bus(self, will: Any, birth: Any) -> Any:
        return self.broker.bus("trellis-central-server", will=will, birth=birth)

    @contextlib.asynccontextmanager
    async def _superlink(self, environment: dict[str, str]) -> AsyncIterator[ProcessSuperLink]:
        superlink = ProcessSuperLink(APPS, environment, self.script)
        self.superlinks.append(superlink)
        try:
            yield superlink
        finally:
            await superlink.end()
