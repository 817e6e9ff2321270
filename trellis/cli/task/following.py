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

from trellis.cli.foreign_text import harmless
from trellis.cli.options import server_client
from trellis.cli.watching.command import filters, open_bus
from trellis.cli.watching.follower import Follower
from trellis.cli.watching.metrics import accuracy_of
from trellis.cli.watching.screen import Screen
from trellis.errors import TrellisError, Unavailable
from trellis.http.client import ServiceClient
from trellis.payloads import CentralTask, TaskState
from trellis.topics import Topics

POLL_S = 0.5
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
class Source:
    """Where a task is followed."""

    server: str
    broker: str
    keys: Path
    topics: Topics


async def until_ended(task: str, source: Source, *, quiet: bool) -> Ending:
    """Show a task until it has ended, and return how.

    Raises:
        Unavailable: The server is away for longer than a restart takes.
    """
    async with _shown(task, source, quiet), server_client(source.server, source.keys) as client:
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
async def _shown(task: str, source: Source, quiet: bool) -> AsyncIterator[None]:
    if quiet:
        yield
        return
    async with open_bus(source.broker, source.keys) as bus:
        try:
            await bus.wait_connected(3.0)
        except Unavailable as error:
            print(f"no live view: {harmless(str(error))}", file=sys.stderr)
            yield
            return
        async with bus.subscribe(*filters(source.topics, None)) as messages:
            with Screen(task=task) as screen:
                shown = asyncio.create_task(Follower(source.topics, screen).run(messages), name="view")
                try:
                    yield
                finally:
                    # What the server's last answer told is on its way by MQTT too: let it be drawn.
                    await asyncio.sleep(POLL_S)
                    shown.cancel()
                    await asyncio.gather(shown, return_exceptions=True)
