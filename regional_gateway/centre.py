"""Listens to the tier above: brings rounds down, mirrors states, polls while MQTT is away."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import defaultdict
from collections.abc import Callable, Mapping

from pydantic import ValidationError

from regional_gateway.announcer import Announcer
from regional_gateway.board import at_the_server
from regional_gateway.ledger import Ledger, TaskRecord
from regional_gateway.place import Place
from regional_gateway.round_news import Rounds
from regional_gateway.tier import RegionalTier
from trellis.errors import PayloadError, Refused, TrellisError, Unavailable
from trellis.http.client import ServiceClient
from trellis.identifiers import CENTRAL
from trellis.mqtt import Bus, BusMessage
from trellis.payloads import CentralTask, Round, TaskStatus, now_ms
from trellis.topics import Kind, Topics

logger = logging.getLogger(__name__)

POLL_EVERY_S = 1.0
ANSWER_S = 3.0


class Centre:
    """What the tier above says, brought to the region.

    A task's rounds and state come from the nearest gateway above that has the task, or from the server.
    """

    def __init__(
        self, topics: Topics, ledger: Ledger, announcer: Announcer, place: Place, tier: RegionalTier | None
    ) -> None:
        self._topics, self._ledger, self._announcer = topics, ledger, announcer
        self._place, self._tier = place, tier
        self._heard: defaultdict[str, Rounds] = defaultdict(Rounds)  # by who says it
        self._poll_errors: dict[str, str] = {}

    async def copy_rounds(self, parent: Bus) -> None:
        """Bring each round as it comes, until cancelled."""
        filters = [self._topics.filter(Kind.CENTRAL_TASK_ROUND)]
        filters += [self._topics.filter(Kind.TASK_ROUND, region=tier.region) for tier in self._place.above]
        async with parent.subscribe(*filters) as messages:
            async for message in messages:
                try:
                    address = self._topics.parse(message.topic)
                    source = address.region or CENTRAL
                    if self._heard[source].heard(address.task, message.payload):
                        await self._bring_round(address.task, source)
                except PayloadError as error:
                    _drop(message, error)

    async def mirror_states(self, parent: Bus) -> None:
        """Mirror each task's state into its status, until cancelled."""
        filters = [self._topics.filter(Kind.CENTRAL_TASK_STATE)]
        filters += [self._topics.filter(Kind.TASK_STATUS, region=tier.region) for tier in self._place.above]
        async with parent.subscribe(*filters) as messages:
            async for message in messages:
                try:
                    address = self._topics.parse(message.topic)
                    source = address.region or CENTRAL
                    said = _state_in(address.kind, message.payload) if message.payload else None
                except PayloadError as error:
                    _drop(message, error)
                    continue
                if not message.payload:
                    self._heard[source].forget(address.task)
                elif said is not None and said.task == address.task:
                    await self._mirror(said, source)

    def revision(self, task: str) -> int:
        """Return the revision that the server has of `task`, 0 if it was not heard."""
        said = [rounds.state(task) for rounds in self._heard.values()]
        return max((state.revision for state in said if state is not None), default=0)

    async def catch_up(self, task: str) -> None:
        """Say of a task that has just come what the tier above said of it before."""
        record = self._ledger.get(task)
        if record is None:
            return
        source = self._place.source(record.descriptor)
        if (said := self._heard[source].state(task)) is not None:
            await self._mirror(said, source)
        if self._heard[source].latest(task) is not None:
            await self._bring_round(task, source)

    async def poll(self, clients: Mapping[str, ServiceClient], is_due: Callable[[], bool]) -> None:
        """Ask the tier above once a second for the tasks that run, while `is_due`, until cancelled.

        Args:
            clients: The HTTP APIs of the tiers above, `central` or a region's.
            is_due: Whether nothing is heard on MQTT.
        """
        while True:
            await asyncio.sleep(POLL_EVERY_S)
            if is_due():
                await asyncio.gather(*(self._poll_all(*one) for one in clients.items()))

    async def _poll_all(self, source: str, client: ServiceClient) -> None:
        problem = ""
        for task in [record.task for record in self._ledger if self._is_polled(record, source)]:
            try:
                async with asyncio.timeout(ANSWER_S):
                    await self._poll_one(client, task, source)
            except (TrellisError, ValidationError, TimeoutError) as error:
                problem = str(error) or f"{client.url} did not answer within {ANSWER_S:g} s"
                if isinstance(error, Unavailable | TimeoutError):
                    break  # it would not answer for the others either
        if problem and problem != self._poll_errors.get(source):
            logger.warning("parent's broker is away, and so is the answer of %s: %s", source, problem)
        self._poll_errors[source] = problem

    async def _poll_one(self, client: ServiceClient, task: str, source: str) -> None:
        with contextlib.suppress(Refused):  # `unknown`: it has no round yet
            round_ = Round.model_validate(await client.get(f"/v1/tasks/{task}/round"))
            if self._heard[source].polled(task, round_) is not None:
                await self._bring_round(task, source)
        try:
            said = CentralTask.model_validate(await client.get(f"/v1/tasks/{task}/state"))
        except Refused as error:
            if source == CENTRAL or error.code != "unknown":
                raise
            return  # the gateway above has not heard of it either
        await self._mirror(said, source)

    async def _bring_round(self, task: str, source: str) -> None:
        record, payload = self._ledger.get(task), self._heard[source].latest(task)
        if record is None or record.cleared or self._place.source(record.descriptor) != source:
            return
        above = Round.parse(payload) if payload is not None else None
        self._announcer.board.heard_above(task, above)
        if self._tier is None or not self._place.aggregates(record.descriptor):
            await self._announcer.round(task, payload or b"")
        elif above is not None:
            self._tier.heard_round(task, above)

    async def _mirror(self, said: CentralTask, source: str) -> None:
        self._heard[source].heard_state(said)
        known = self._ledger.get(said.task)
        if known is None or self._place.source(known.descriptor) != source:
            return

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

    def _is_polled(self, record: TaskRecord, source: str) -> bool:
        return record.runs and self._place.source(record.descriptor) == source


def _state_in(kind: Kind, payload: bytes) -> CentralTask | None:
    """Return what a server's state, or a gateway's status, says of the task at the server."""
    if kind is Kind.CENTRAL_TASK_STATE:
        return CentralTask.parse(payload)
    return at_the_server(TaskStatus.parse(payload))


def _drop(message: BusMessage, error: PayloadError) -> None:
    logger.warning("dropped what came on topic=%s: %s", message.topic[:200], error)
