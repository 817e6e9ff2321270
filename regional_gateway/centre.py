"""Listens to the centre: copies rounds down at once, mirrors task states, and polls while MQTT is away."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable

from pydantic import ValidationError

from regional_gateway.announcer import Announcer
from regional_gateway.ledger import Ledger, TaskRecord
from regional_gateway.round_news import Rounds
from trellis.errors import PayloadError, Refused, TrellisError, Unavailable
from trellis.http.client import ServiceClient
from trellis.mqtt import Bus, BusMessage
from trellis.payloads import CentralTask, Round, now_ms
from trellis.topics import Kind, Topics

logger = logging.getLogger(__name__)

POLL_EVERY_S = 1.0
ANSWER_S = 3.0


class Centre:
    """What the centre says, brought to the region."""

    def __init__(self, topics: Topics, ledger: Ledger, announcer: Announcer) -> None:
        self._topics, self._ledger, self._announcer = topics, ledger, announcer
        self._rounds = Rounds()
        self._poll_error = ""

    async def copy_rounds(self, parent: Bus) -> None:
        """Copy each round as it comes, until cancelled."""
        async with parent.subscribe(self._topics.filter(Kind.CENTRAL_TASK_ROUND)) as messages:
            async for message in messages:
                try:
                    task = self._topics.parse(message.topic).task
                    news = self._rounds.heard(task, message.payload)
                except PayloadError as error:
                    _drop(message, error)
                    continue
                if news and self._has(task):
                    await self._announcer.round(task, message.payload)

    async def mirror_states(self, parent: Bus) -> None:
        """Mirror each task's state into its status, until cancelled."""
        async with parent.subscribe(self._topics.filter(Kind.CENTRAL_TASK_STATE)) as messages:
            async for message in messages:
                try:
                    task = self._topics.parse(message.topic).task
                    said = CentralTask.parse(message.payload) if message.payload else None
                except PayloadError as error:
                    _drop(message, error)
                    continue
                if said is None:
                    self._rounds.forget(task)
                elif said.task == task:
                    await self._mirror(said)

    def revision(self, task: str) -> int:
        """Return the revision that the server has of `task`, 0 if it was not heard."""
        said = self._rounds.state(task)
        return said.revision if said is not None else 0

    async def catch_up(self, task: str) -> None:
        """Say of a task that has just come what the centre said of it before."""
        if (said := self._rounds.state(task)) is not None:
            await self._mirror(said)
        if (payload := self._rounds.latest(task)) is not None:
            await self._announcer.round(task, payload)

    async def poll(self, client: ServiceClient, is_due: Callable[[], bool]) -> None:
        """Ask the server once a second for the tasks that run, while `is_due`, until cancelled."""
        while True:
            await asyncio.sleep(POLL_EVERY_S)
            if is_due():
                await self._poll_all(client, [record.task for record in self._ledger if record.runs])

    async def _poll_all(self, client: ServiceClient, tasks: list[str]) -> None:
        problem = ""
        for task in tasks:
            try:
                async with asyncio.timeout(ANSWER_S):
                    await self._poll_one(client, task)
            except (TrellisError, ValidationError, TimeoutError) as error:
                problem = str(error) or f"{client.url} did not answer within {ANSWER_S:g} s"
                if isinstance(error, Unavailable | TimeoutError):
                    break  # it would not answer for the others either
        if problem and problem != self._poll_error:
            logger.warning("parent's broker is away, and so is the server's answer: %s", problem)
        self._poll_error = problem

    async def _poll_one(self, client: ServiceClient, task: str) -> None:
        with contextlib.suppress(Refused):  # `unknown`: it has no round yet
            round_ = Round.model_validate(await client.get(f"/v1/tasks/{task}/round"))
            if (payload := self._rounds.polled(task, round_)) is not None and self._has(task):
                await self._announcer.round(task, payload)
        view = await client.get(f"/v1/tasks/{task}")
        named = {key: view[key] for key in ("task", "revision", "state", "since", "rounds") if key in view}
        await self._mirror(CentralTask.model_validate(named))

    async def _mirror(self, said: CentralTask) -> None:
        self._rounds.heard_state(said)

        def take(record: TaskRecord | None) -> TaskRecord | None:
            return record.at_centre(said, now_ms()) if record is not None and not record.cleared else record

        try:
            _, changed = await self._ledger.change(said.task, take)
        except Unavailable as error:
            logger.error("what the server says is not stored, and so not passed on: %s", error)
            return
        if changed:
            logger.info("task at the server task=%s state=%s", said.task, said.state)
            self._announcer.touch(said.task)

    def _has(self, task: str) -> bool:
        record = self._ledger.get(task)
        return record is not None and not record.cleared


def _drop(message: BusMessage, error: PayloadError) -> None:
    logger.warning("dropped what came on topic=%s: %s", message.topic[:200], error)
