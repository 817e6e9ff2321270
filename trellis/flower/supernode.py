"""The stock `flower-supernode` in the place of `trellis.flower.link`, with the same agent behind it.

A way out should a release of Flower break our own client: of Flower it uses commands, options and public API,
and one line of the SuperNode's log, which tells the node ID. It is slower, and the SuperNode runs what the
server's FAB holds, so a device does it only where its operator said so.

    SuperNode ── fleet API ──▶ desk (loopback) ── fleet API, our TLS ──▶ the server's front
    ClientApp ── message ────▶ desk ──▶ the agent's thread: pull … push ──▶ desk ── reply ──▶ ClientApp

    SupernodeLink.connect / pull / push
    ├── ConfigError         flower-supernode is not beside this Python
    ├── Unavailable         it has not registered yet, ended, or fell silent: connect again
    └── Refused "reply"     the SuperNode that handed the message over has ended
"""

from __future__ import annotations

import asyncio
import logging
import queue
import re
import secrets
import time
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from flwr.app import Message

from trellis.errors import Refused, Unavailable
from trellis.flower.backchannel import TOKEN_VARIABLE, URL_VARIABLE
from trellis.flower.front import FleetFront
from trellis.flower.handover_desk import HandoverDesk, Question
from trellis.flower.programs import end_orphans, environment, log_tail, program
from trellis.http.server import HttpServer
from trellis.loopback import free_ports
from trellis.processes import PidFile, die_with_parent, terminate_tree
from trellis.tls import TlsFiles

logger = logging.getLogger(__name__)

_NODE_ID = re.compile(rb"SuperNode ID: (\d+)")
_REGISTERED_S = 15.0
"""How long one `connect` waits for the node; the next one goes on waiting."""
_SILENT_S = 90.0
"""A SuperNode beats every 30 s; one that says nothing for so long has given up, though its process runs."""
_LOOK_S = 0.5
_GRACE_S = 4.0
_CALL_S = 60.0

T = TypeVar("T")


@dataclass(frozen=True)
class _Running:
    """A SuperNode from its start to its end."""

    process: asyncio.subprocess.Process
    desk: HandoverDesk
    resources: AsyncExitStack


class SupernodeLink:
    """A Flower client of one server, as `FlowerLink` is: blocking, for one thread.

    A SuperNode is a new Flower node after every start. What was asked of the old one is asked of the new, and
    answered from the device's journal.

    Args:
        address: `host:port` of the server's front.
        folder: Gets Flower's home, the log, and the file with pid and start time.
        tls: CA and client certificate for the front; None speaks plain HTTP.
        loop: Serves the desk and watches the child; of the main thread, with which the child must die.
    """

    def __init__(
        self, address: str, *, folder: Path, tls: TlsFiles | None, loop: asyncio.AbstractEventLoop
    ) -> None:
        self.address = address
        self._folder = folder
        self._tls = tls
        self._loop = loop
        self._log = folder / "supernode.log"
        self._pid_file = PidFile(folder / "supernode.pid")
        self._running: _Running | None = None
        self._open: dict[str, Question] = {}

    @property
    def in_hand(self) -> frozenset[str]:
        """The IDs of the messages that the present SuperNode handed over, and that are not answered."""
        return frozenset(self._open)

    def connect(self) -> int:
        """Be an active node and return its ID; a SuperNode that is at it is waited for, not replaced."""
        if self._running is None:
            self._running = self._call(self._start())
        until = time.monotonic() + _REGISTERED_S
        while (found := _NODE_ID.search(self._log.read_bytes())) is None:
            self._require_alive()
            if time.monotonic() >= until:
                raise Unavailable(f"{self.address} has not registered this device's SuperNode yet")
            time.sleep(0.1)
        return int(found[1])

    def pull(self, asked: Callable[[], None] = lambda: None) -> Message | None:
        """Return the next message that the SuperNode hands over, or None after half a second.

        Args:
            asked: Not called: a SuperNode tells of a message once it has come.
        """
        desk = self._connected().desk
        try:
            question = desk.questions.get(timeout=_LOOK_S)
        except queue.Empty:
            self._require_alive()
            return None
        self._open[question.message.metadata.message_id] = question
        return question.message

    def push(self, reply: Message) -> str:
        """Hand `reply` to the SuperNode, and return the ID of the message it answers once it is uploaded."""
        running = self._connected()
        answered = reply.metadata.reply_to_message_id
        question = self._open.pop(answered, None)
        if question is None:
            raise Refused("reply", f"the SuperNode that asked message {answered[:8]} has ended")
        asks = running.desk.asks
        self._loop.call_soon_threadsafe(question.settle, reply)
        # It works on one message at a time: when it asks for the next one it has uploaded this one.
        while not running.desk.wait_ask(asks, _LOOK_S):
            self._require_alive()
        return answered

    def close(self, *, deactivate: bool) -> None:
        """End the SuperNode, which signs its node off in any case, and all that it started."""
        self._stop()

    def _connected(self) -> _Running:
        if self._running is None:
            raise RuntimeError("SupernodeLink is not connected")
        return self._running

    def _require_alive(self) -> None:
        running = self._connected()
        status = running.process.returncode
        silent_s = time.monotonic() - running.desk.heard_at
        if status is None and silent_s < _SILENT_S:
            return
        tail = log_tail(self._log)
        self._stop()
        if status is not None:
            raise Unavailable(f"flower-supernode ended with status {status}: {tail}")
        raise Unavailable(f"flower-supernode said nothing for {silent_s:.0f} s: {tail}")

    def _stop(self) -> None:
        running, self._running = self._running, None
        self._open.clear()
        if running is not None:
            self._call(running.resources.aclose())

    def _call(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(_CALL_S)

    async def _start(self) -> _Running:
        home = (self._folder / "home").resolve()
        home.mkdir(parents=True, exist_ok=True)
        self._folder.chmod(0o700)
        await asyncio.to_thread(self._pid_file.end_previous)
        await asyncio.to_thread(end_orphans, home)
        token = secrets.token_urlsafe(32)
        async with AsyncExitStack() as stack:
            front = FleetFront(self.address, tls=self._tls)
            stack.push_async_callback(front.aclose)
            desk = HandoverDesk(front, token)
            server = await stack.enter_async_context(HttpServer(desk, host="127.0.0.1", port=0, tls=None))
            stack.callback(desk.release)
            process = await self._spawn(home, server, token)
            stack.push_async_callback(self._end, process, home)
            logger.info("SuperNode pid=%d server=%s", process.pid, self.address)
            return _Running(process, desk, stack.pop_all())

    async def _spawn(self, home: Path, server: HttpServer, token: str) -> asyncio.subprocess.Process:
        command = [
            program("flower-supernode"),
            "--insecure",  # up to the desk, on loopback; from there it is our TLS
            "--superlink",
            f"127.0.0.1:{server.port}",
            "--host",
            "127.0.0.1",
            "--port",
            str(*free_ports(1)),
        ]
        with self._log.open("wb") as log:  # anew: the node ID in it must be this one's
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment(home, {URL_VARIABLE: server.url, TOKEN_VARIABLE: token}),
                preexec_fn=die_with_parent,
            )
        self._pid_file.write(process.pid)
        return process

    async def _end(self, process: asyncio.subprocess.Process, home: Path) -> None:
        await asyncio.to_thread(terminate_tree, process.pid, grace_s=_GRACE_S)
        await process.wait()
        # SuperExec of a SuperNode that ended by itself has lost its parent: the tree no longer shows it.
        await asyncio.to_thread(end_orphans, home)
        self._pid_file.clear()
