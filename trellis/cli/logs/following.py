"""Follows a task's lines: asked of the server once a second, and live from MQTT."""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from trellis.cli.logs.lines import Level, Line
from trellis.cli.watching.command import connect
from trellis.errors import PayloadError, Refused, TrellisError, Unavailable
from trellis.http.client import ServiceClient
from trellis.mqtt.messages import Bus, BusMessage
from trellis.payloads import Log, TaskState
from trellis.topics import Kind, Topics

POLL_S = 1.0
_REMEMBERED = 20_000
"""Lines come from both sides; so many are known again."""


@dataclass(frozen=True)
class Wanted:
    """Which lines are asked for.

    Attributes:
        limit: How many of the past, the newest.
        since: Said no earlier, in ms by the clock of who said it.
    """

    task: str
    device: str | None = None
    region: str | None = None
    level: Level = Level.DEBUG
    limit: int = 1000
    since: int = 0

    def includes(self, line: Line) -> bool:
        """Whether `line` is one of them."""
        return (
            self.device in (None, line.device)
            and self.region in (None, line.region)
            and line.level.at_least(self.level)
            and line.ts >= self.since
        )


async def stored(client: ServiceClient, wanted: Wanted, *, after: int = 0) -> dict[str, Any]:
    """Return what the server has: `lines`, `state` and `cursor`.

    Raises:
        Unavailable: The server does not answer.
        Refused: It has no such task (code `unknown`).
    """
    asked: dict[str, str | int] = {"level": wanted.level.value, "after": after, "limit": wanted.limit}
    asked |= {name: value for name, value in (("device", wanted.device), ("region", wanted.region)) if value}
    return await client.get(f"/v1/tasks/{wanted.task}/logs", **asked)


def lines_of(answer: dict[str, Any], wanted: Wanted) -> list[Line]:
    """Return the wanted lines in the server's answer, which knows of all that is asked but the time.

    Raises:
        TrellisError: It is not what our server answers.
    """
    try:
        return [line for line in map(Line.from_json, answer["lines"]) if wanted.includes(line)]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise TrellisError(f"the server's answer holds no log lines as ours does: {error!r}") from None


@dataclass
class _Seen:
    lines: OrderedDict[Line, None] = field(default_factory=OrderedDict)

    def add(self, line: Line) -> bool:
        """Remember `line`; return whether it is new."""
        if line in self.lines:
            return False
        self.lines[line] = None
        if len(self.lines) > _REMEMBERED:
            self.lines.popitem(last=False)
        return True


class Following:
    """The lines of a task as they come, each once.

    Args:
        bus: The broker to listen to as well; with it the server may be away, or not have the task.
        warn: Told once when the server goes away, and once when it is back.
    """

    def __init__(
        self,
        client: ServiceClient,
        bus: Bus | None,
        topics: Topics,
        wanted: Wanted,
        warn: Callable[[str], None],
    ) -> None:
        self._client, self._bus, self._topics = client, bus, topics
        self._wanted, self._warn = wanted, warn
        self._coming: asyncio.Queue[Line | None] = asyncio.Queue(maxsize=1000)

    async def run(self, show: Callable[[Line], None]) -> None:
        """Hand lines to `show` until the task has ended; those of the past first.

        Raises:
            Unavailable, Refused: The server does not answer, or not know the task, and there is no broker.
            ConfigError: No broker answers where one was given.
        """
        seen = _Seen()
        async with asyncio.TaskGroup() as group:
            workers = [group.create_task(self._poll(), name="store")]
            if self._bus is not None:
                workers.append(group.create_task(self._listen(self._bus), name="live"))
            while (line := await self._coming.get()) is not None:
                if seen.add(line):
                    show(line)
            for worker in workers:
                worker.cancel()

    async def _poll(self) -> None:
        after, away, over = 0, False, False
        while True:
            try:
                answer = await stored(self._client, self._wanted, after=after)
                found = lines_of(answer, self._wanted)
            except (Unavailable, Refused) as error:
                if self._bus is None and after == 0:
                    raise
                if not away:
                    self._warn(f"{error}; it is asked again")
                away, over = True, False
            else:
                if away:
                    self._warn(f"{self._client.url} answers again")
                for line in found:
                    await self._coming.put(line)
                # Once more after the end: devices have their last word then.
                if over:
                    await self._coming.put(None)
                    return
                away, over, after = False, _ended(answer), int(answer["cursor"])
            await asyncio.sleep(POLL_S)

    async def _listen(self, bus: Bus) -> None:
        wanted = self._wanted
        names = {"region": wanted.region or "+", "device": wanted.device or "+", "task": wanted.task}
        kinds = (Kind.LOG,) if wanted.device else (Kind.LOG, Kind.GATEWAY_LOG)
        filters = [self._topics.filter(kind, **names) for kind in kinds]
        async with bus:
            await connect(bus)
            async with bus.subscribe(*filters) as messages:
                async for message in messages:
                    # What is not ours to read is not ours to show.
                    with contextlib.suppress(PayloadError):
                        line = _live(self._topics, message)
                        if wanted.includes(line):
                            await self._coming.put(line)


def _live(topics: Topics, message: BusMessage) -> Line:
    address = topics.parse(message.topic)
    log = Log.parse(message.payload)
    source = "device" if address.device else "gateway"
    device = address.device or None
    return Line(log.ts, source, address.region, device, Level(log.level), log.logger, log.message)


def _ended(answer: dict[str, Any]) -> bool:
    return answer.get("state") in {state for state in TaskState if state.ended}
