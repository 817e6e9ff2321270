"""A `flower-superlink` of our own: a child process on loopback, with its state in memory.

Open-source Flower serves the Control API, which starts code, on the same port as the Fleet API, and to
everybody. So the SuperLink binds loopback and devices reach it through `trellis.flower.front` alone.

    SuperLink.__aenter__ / submit
    ├── MissingExtra   flower-superlink is not beside this Python
    └── Unavailable    it did not start, or took no run: the message quotes what Flower said
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from trellis.errors import Unavailable
from trellis.flower.orders import Order, Scalar, Started
from trellis.flower.programs import end_orphans, environment, log_tail, program
from trellis.loopback import free_ports
from trellis.processes import PidFile, die_with_parent, terminate_tree

logger = logging.getLogger(__name__)

_NAME = "trellis"
_START_TIMEOUT_S = 60.0
_COMMAND_TIMEOUT_S = 60.0
_GRACE_S = 4.0
"""After SIGTERM a SuperLink and its apps are gone in 2.3 s."""


class SuperLink:
    """A running SuperLink from `__aenter__` to `__aexit__`.

    Args:
        folder: State folder of its own: Flower's home, the log, the file with pid and start time.
        port: Loopback port, 0 for a free one.
        environment: What ServerApps alone inherit, beside this process's environment.
        preload: Modules that an app's process imports before there is a run for it.
    """

    def __init__(
        self,
        *,
        folder: Path,
        port: int = 0,
        environment: Mapping[str, str] | None = None,
        preload: Sequence[str] = (),
    ) -> None:
        self._folder = folder
        self._wanted_port = port
        self._environment = dict(environment or {})
        self._port = 0
        self._process: asyncio.subprocess.Process | None = None
        self._pid_file = PidFile(folder / "superlink.pid")
        self._preload = preload
        self._spare: asyncio.subprocess.Process | None = None
        self._apps: list[asyncio.subprocess.Process] = []
        self._submitting = asyncio.Lock()

    @property
    def address(self) -> str:
        """`127.0.0.1:PORT`, for the front and for nobody else."""
        return f"127.0.0.1:{self._port}"

    @property
    def pid(self) -> int:
        """The process ID of the SuperLink."""
        return self._running().pid

    @property
    def alive(self) -> bool:
        """Whether the child still runs."""
        return self._process is not None and self._process.returncode is None

    async def __aenter__(self) -> Self:
        home = self._home
        home.mkdir(parents=True, exist_ok=True)
        self._folder.chmod(0o700)
        await asyncio.to_thread(self._pid_file.end_previous)
        await asyncio.to_thread(end_orphans, self._home)
        self._port = self._wanted_port or free_ports(1)[0]
        connection = f'[superlink.{_NAME}]\naddress = "{self.address}"\ninsecure = true\n'
        (home / "config.toml").write_text(f'[superlink]\ndefault = "{_NAME}"\n\n{connection}')
        try:
            await self._start()
        except BaseException:
            await self._end()
            raise
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self._end()

    async def submit(self, app: Path, run_config: Mapping[str, Scalar]) -> int:
        """Start a run of the Flower app in the folder `app` and return its run ID.

        Keys of `run_config` must stand in the app's `pyproject.toml`.
        """
        # One at a time: a process takes the oldest run that nobody has taken.
        async with self._submitting:
            spare, self._spare = self._spare, None
            process = spare or await self._start_app()
            order = Order(address=self.address, superlink_pid=self.pid, app=str(app), config=dict(run_config))
            try:
                started = await asyncio.wait_for(_ordered(process, order), _COMMAND_TIMEOUT_S)
            except TimeoutError:
                problem: str | None = f"no answer in {_COMMAND_TIMEOUT_S:.0f} s"
            except (OSError, ValueError):
                problem = f"its process ended: {log_tail(self._apps_log)}"
            else:
                problem = started.problem
            if problem is not None or started.run_id is None:
                await asyncio.to_thread(terminate_tree, process.pid, grace_s=0.5)
                raise Unavailable(f"the SuperLink took no run: {problem}")
        return started.run_id

    async def stop_run(self, run_id: int) -> None:
        """Ask the SuperLink to stop a run; its process may take 20 s to end."""
        await self._flwr("stop", str(run_id), _NAME, "--format", "json")

    async def wait_ended(self) -> int:
        """Return the exit status once the child has ended by itself."""
        return await self._running().wait()

    @property
    def _home(self) -> Path:
        return (self._folder / "flower").resolve()

    @property
    def _apps_log(self) -> Path:
        return self._folder / "apps.log"

    @property
    def _log(self) -> Path:
        return self._folder / "superlink.log"

    def _running(self) -> asyncio.subprocess.Process:
        if self._process is None:
            raise RuntimeError("SuperLink is not entered")
        return self._process

    async def _start(self) -> None:
        command = [
            program("flower-superlink"),
            "--insecure",  # loopback only
            "--host",
            "127.0.0.1",
            "--port",
            str(self._port),
            "--isolation",
            "process",  # apps are our own children
            "--disable-runtime-dependency-installation",
        ]
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment(self._home),
                preexec_fn=die_with_parent,
            )
        self._pid_file.write(self._process.pid)
        # It imports what an app needs while the SuperLink does.
        self._spare = await self._start_app()
        await self._wait_answering()
        logger.info("SuperLink pid=%d address=%s", self._process.pid, self.address)

    async def _start_app(self) -> asyncio.subprocess.Process:
        """Return the process of an app that waits for its order."""
        with self._apps_log.open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", "trellis.flower.app_start", *self._preload),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                env=environment(self._home, self._environment),
                preexec_fn=die_with_parent,
            )
        self._apps = [app for app in self._apps if app.returncode is None] + [process]
        return process

    async def _wait_answering(self) -> None:
        deadline = time.monotonic() + _START_TIMEOUT_S
        async with httpx.AsyncClient(trust_env=False) as client:
            while time.monotonic() < deadline:
                if not self.alive:
                    raise Unavailable(f"flower-superlink ended at its start: {log_tail(self._log)}")
                with contextlib.suppress(httpx.TransportError):
                    response = await client.get(f"http://{self.address}/health", timeout=1.0)
                    if response.status_code == httpx.codes.OK:
                        return
                await asyncio.sleep(0.05)
        raise Unavailable(
            f"flower-superlink did not answer within {_START_TIMEOUT_S:.0f} s: {log_tail(self._log)}"
        )

    async def _flwr(self, *arguments: str) -> dict[str, Any]:
        # The command line is Flower's public interface to its Control API.
        process = await asyncio.create_subprocess_exec(
            program("flwr"),
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=environment(self._home),
            preexec_fn=die_with_parent,
        )
        try:
            out, err = await asyncio.wait_for(process.communicate(), _COMMAND_TIMEOUT_S)
        except TimeoutError:
            raise Unavailable(f"flwr {arguments[0]} gave no answer in {_COMMAND_TIMEOUT_S:.0f} s") from None
        finally:
            if process.returncode is None:
                await asyncio.to_thread(terminate_tree, process.pid, grace_s=0.5)
                await process.wait()
        answer = _last_json(out.decode(errors="replace"))
        if answer is None:
            said = (err or out).decode(errors="replace").strip()[-500:]
            raise Unavailable(f"flwr {arguments[0]} failed with status {process.returncode}: {said}")
        return answer

    async def _end(self) -> None:
        if self._process is None:
            return
        children = [self._process, *self._apps]
        ends = [
            asyncio.to_thread(terminate_tree, child.pid, grace_s=_GRACE_S)
            for child in children
            if child.returncode is None
        ]
        await asyncio.shield(asyncio.gather(*ends))
        for child in children:
            await child.wait()
        await asyncio.shield(asyncio.to_thread(end_orphans, self._home))
        self._pid_file.clear()


async def _ordered(process: asyncio.subprocess.Process, order: Order) -> Started:
    """Return what a waiting process makes of `order`.

    Raises:
        OSError: It has ended.
        ValueError: It ended without an answer.
    """
    if process.stdin is None or process.stdout is None:
        raise RuntimeError("the app's process has no pipes")
    process.stdin.write(order.to_line())
    await process.stdin.drain()
    process.stdin.close()
    return Started.model_validate_json(await process.stdout.readline())


def _last_json(text: str) -> dict[str, Any] | None:
    """Return the JSON object that ends `text`: Flower may print warnings before it."""
    lines: Sequence[str] = text.splitlines()
    for start, line in enumerate(lines):
        if line.startswith("{"):
            with contextlib.suppress(ValueError):
                value = json.loads("\n".join(lines[start:]))
                if isinstance(value, dict):
                    return value
    return None
