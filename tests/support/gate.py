"""A gate between members and the front: it holds one call, or its answer, of one process or its children.

A call that is repeated meanwhile is held again, until the test decides. What the process does next is then
known, so that it can be killed or stopped at that very moment, with no word of it in the product.

    held = gate.hold(fleet.devices["d2"], "push-messages", count=2)
    await held.arrived()
    fleet.devices["d2"].kill()
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

import psutil
from members import Member
from starlette.responses import PlainTextResponse
from starlette.types import Message, Receive, Scope, Send

from trellis.flower.front import FleetFront
from trellis.http.server import HttpServer

_HELD_S = 120.0
"""So long each repetition is held at most: it is then dropped, and an answer passed on."""
_DROPPED = PlainTextResponse("dropped at the gate", status_code=503)


class Held:
    """One request that is to be held, from the moment that it was asked for."""

    def __init__(
        self,
        pid: int,
        call: str,
        count: int,
        *,
        after: str | None,
        when: Callable[[], bool] | None,
        answer: bool,
    ) -> None:
        self.pid, self.answer = pid, answer
        self.call, self._count, self._after, self._when = call, count, after, when
        self._arrived, self._decided = asyncio.Event(), asyncio.Event()
        self._passes = False

    def is_due(self, call: str) -> bool:
        """Take note of a call of the process; return whether it is the one to be held, or that once more."""
        if self._arrived.is_set():
            return call == self.call  # Flower's client gives up after 30 s, and the device repeats it
        if self._after is not None:
            self._after = None if call == self._after else self._after
            return False
        if call != self.call or (self._when is not None and not self._when()):
            return False
        self._count -= 1
        return self._count == 0

    @property
    def is_over(self) -> bool:
        """Whether it is decided."""
        return self._decided.is_set()

    async def arrived(self, *, within_s: float = 120.0) -> None:
        """Return once the request is here; with `answer`, once the server has answered it."""
        try:
            await asyncio.wait_for(self._arrived.wait(), within_s)
        except TimeoutError:
            raise AssertionError(f"no {self.call} of process {self.pid} within {within_s:g} s") from None

    def release(self) -> None:
        """Let it pass."""
        self._passes = True
        self._decided.set()

    def drop(self) -> None:
        """Never let it pass; what was released has passed."""
        self._decided.set()

    async def passes(self) -> bool:
        """Say that it has come, and return whether it may pass once that is decided."""
        self._arrived.set()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._decided.wait(), _HELD_S)
        return self._passes


class Gate:
    """Passes the Fleet API on from one port of loopback to another, from `__aenter__` to `__aexit__`."""

    def __init__(self, port: int, front_port: int) -> None:
        self._front = FleetFront(f"127.0.0.1:{front_port}")
        self._server = HttpServer(self, host="127.0.0.1", port=port, tls=None)
        self._held: list[Held] = []

    async def __aenter__(self) -> Gate:
        await self._server.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        for held in self._held:
            held.drop()
        await self._server.__aexit__(None, None, None)
        await self._front.aclose()

    def hold(
        self,
        member: Member,
        call: str,
        *,
        after: str | None = None,
        when: Callable[[], bool] | None = None,
        count: int = 1,
        answer: bool = False,
    ) -> Held:
        """Hold a process's next call of that name, or the one after `count - 1` others.

        Once it is decided later ones pass.

        Args:
            member: Whose call; it must run.
            call: The last part of the path, such as `pull-messages`.
            after: Count only from when this other call has been made.
            when: Count only calls at which this is true. It is asked as each call comes, and must depend only
                on what has happened by then.
            count: Which of its calls from then on, the next being 1.
            answer: Let the call through and hold the answer.
        """
        held = Held(member.pid, call, count, after=after, when=when, answer=answer)
        self._held.append(held)
        return held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        held = self._due(scope) if scope["type"] == "http" else None
        if held is None:
            await self._front(scope, receive, send)
        elif held.answer:
            await self._front(scope, receive, _held_back(send, held))
        elif await held.passes():
            await self._front(scope, receive, send)
        else:
            await _DROPPED(scope, receive, send)

    def _due(self, scope: Scope) -> Held | None:
        call, port = scope["path"].rpartition("/")[2], scope["client"][1]
        ours = [one for one in self._held if not one.is_over and port in _ports_of(one.pid)]
        return next((one for one in ours if one.is_due(call)), None)


def _held_back(send: Send, held: Held) -> Send:
    async def send_later(message: Message) -> None:
        if message["type"] == "http.response.start":
            await held.passes()
        await send(message)

    return send_later


def _ports_of(pid: int) -> set[int]:
    try:
        process = psutil.Process(pid)
        tree = [process, *process.children(recursive=True)]
        return {one.laddr.port for each in tree for one in each.net_connections("tcp") if one.laddr}
    except psutil.NoSuchProcess:
        return set()
