"""Follows a task to its end: the server's HTTP API says how it ends, MQTT what happens meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from trellis.cli.options import server_client
from trellis.cli.watching.command import filters
from trellis.cli.watching.follower import Follower
from trellis.cli.watching.metrics import accuracy_of
from trellis.cli.watching.screen import Screen
from trellis.errors import TrellisError, Unavailable
from trellis.foreign_text import harmless
from trellis.http.client import ServiceClient
from trellis.mqtt import MqttBus
from trellis.mqtt.messages import BusMessage
from trellis.payloads import CentralTask, TaskState
from trellis.topics import Topics

POLL_S = 0.5
CONNECT_S = 3.0
SILENCE_S = 60.0
"""How long the server may be away, for a restart, before following it is given up."""


@dataclass(frozen=True)
class Ending:
    """How a task ended, as the server tells it."""

    task: str
    state: TaskState
    view: dict[str, Any]

    @property
    def accuracy(self) -> float | None:
        """The final accuracy, if it was evaluated."""
        found = accuracy_of(self.view.get("metrics") or {})
        if found is not None:
            return found
        last = [one["accuracy"] for one in self.view.get("history", []) if one.get("accuracy") is not None]
        return float(last[-1]) if last else None

    @property
    def reason(self) -> str:
        """Why it ended so, `""` if nothing was said."""
        reason = self.view.get("reason")
        return str(reason.get("message", "")) if isinstance(reason, dict) else str(reason or "")


@dataclass(frozen=True)
class Live:
    """What is shown of a task until it has ended.

    Attributes:
        bus: Where it is heard of, not entered yet.
    """

    bus: MqttBus
    topics: Topics


async def until_ended(task: str, server: str, keys: Path, live: Live | None) -> Ending:
    """Show a task, unless `live` is None, until it has ended, and return how.

    Raises:
        Unavailable: The server is away for longer than a restart takes.
    """
    async with _shown(task, live), server_client(server, keys) as client:
        return await ending_of(client, task)


async def ending_of(client: ServiceClient, task: str) -> Ending:
    """Ask the server until a task has ended, and return how.

    Raises:
        Unavailable: The server is away for longer than a restart takes.
    """
    clock = asyncio.get_running_loop().time
    heard = clock()
    while True:
        try:
            # The whole has every round's every device: it is asked for once.
            state = CentralTask.model_validate(await client.get(f"/v1/tasks/{task}/state")).state
            if state.ended:
                return Ending(task, state, await client.get(f"/v1/tasks/{task}"))
            heard = clock()
        except Unavailable:
            if clock() - heard > SILENCE_S:
                raise
        except ValidationError:
            raise TrellisError(f"{client.url} tells no state of task {task!r} that we know") from None
        await asyncio.sleep(POLL_S)


@contextlib.asynccontextmanager
async def _shown(task: str, live: Live | None) -> AsyncIterator[None]:
    async with contextlib.AsyncExitStack() as stack:
        messages = None if live is None else await _heard(stack, live)
        if live is None or messages is None:
            yield
            return
        with Screen(task=task) as screen:
            shown = asyncio.create_task(Follower(live.topics, screen).run(messages), name="view")
            try:
                yield
            finally:
                # What the server's last answer told is on its way by MQTT too: let it be drawn.
                await asyncio.sleep(POLL_S)
                shown.cancel()
                await asyncio.wait([shown])
        if not shown.cancelled() and (error := shown.exception()) is not None:
            print(f"the live view broke: {harmless(str(error))}", file=sys.stderr)


async def _heard(stack: contextlib.AsyncExitStack, live: Live) -> AsyncIterator[BusMessage] | None:
    """Return what is said from now on; None, having told why, where nothing can be heard.

    The task runs, whatever keeps us from looking on: that is no failure of it.
    """
    try:
        bus = await stack.enter_async_context(live.bus)
        await bus.wait_connected(CONNECT_S)
        return await stack.enter_async_context(bus.subscribe(*filters(live.topics, None)))
    except TrellisError as error:
        await stack.aclose()
        print(f"no live view: {harmless(str(error))}", file=sys.stderr)
        return None
