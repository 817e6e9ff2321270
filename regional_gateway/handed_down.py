"""Takes in the tasks that the gateway above publishes, as if they had been posted here."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from regional_gateway.ledger import Ledger
from regional_gateway.place import Place
from trellis import descriptor as descriptors
from trellis.descriptor import TaskDescriptor
from trellis.envelope import Envelope
from trellis.errors import InvalidInput, Refused, Unavailable
from trellis.mqtt import Bus, BusMessage
from trellis.topics import Kind, Topics

logger = logging.getLogger(__name__)

RETRY_S = 5.0
"""Between two attempts to post what could not be taken; news of its task bring the next at once."""


class HandedDown:
    """What the parent publishes for this region, a cancellation too, and is not posted here yet.

    A retained descriptor does not come again before the next connect: what the disk did not take, or what the
    task's last revision stands in the way of, is kept and tried again. Any other refusal is final.

    Args:
        topics: The region's topics.
        place: Who the parent is, and for which region this is.
        ledger: What was posted here.
        post: Posts an envelope here.
    """

    def __init__(
        self, topics: Topics, place: Place, ledger: Ledger, post: Callable[[bytes], Awaitable[object]]
    ) -> None:
        self._topics, self._place, self._ledger, self._post = topics, place, ledger, post
        self._waiting: dict[str, tuple[TaskDescriptor, bytes]] = {}
        self._problems: dict[str, str] = {}
        self._news = asyncio.Event()
        ledger.watch(self._changed)

    async def take_over(self, parent: Bus) -> None:
        """Post what comes, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._post_all(), name="post what is handed down")
            await self._listen(parent)

    async def _listen(self, parent: Bus) -> None:
        kinds = (Kind.DESCRIPTOR, Kind.TASK_STATUS)
        filters = [self._topics.filter(kind, region=self._place.parent) for kind in kinds]
        async with parent.subscribe(*filters) as messages:
            async for message in messages:
                try:
                    self._hear(message)
                except InvalidInput as error:
                    logger.warning("dropped what came on topic=%s: %s", message.topic[:200], error)

    def _hear(self, message: BusMessage) -> None:
        address = self._topics.parse(message.topic)
        if address.kind is Kind.TASK_STATUS:
            self._changed(address.task)
        elif message.payload:  # each gateway clears its own
            descriptor = descriptors.parse_json(Envelope.parse(message.payload).payload)
            if self._place.region in descriptor.regions:
                self._waiting[descriptor.task] = descriptor, message.payload
                self._news.set()

    async def _post_all(self) -> None:
        while True:
            self._news.clear()
            for task, (descriptor, envelope) in list(self._waiting.items()):
                took = not self._is_news(descriptor) or await self._took(descriptor, envelope)
                if took and self._waiting[task][1] == envelope:
                    del self._waiting[task]
                    self._problems.pop(task, None)
            try:
                async with asyncio.timeout(RETRY_S if self._waiting else None):
                    await self._news.wait()
            except TimeoutError:
                continue

    async def _took(self, descriptor: TaskDescriptor, envelope: bytes) -> bool:
        """Post it; return whether nothing more is to be tried."""
        try:
            await self._post(envelope)
        except Refused as error:
            # Logged, and noted on the task, where it is posted.
            return error.code != "conflict" or not self._is_later(descriptor)
        except Unavailable as error:
            problem = str(error)
            if self._problems.get(descriptor.task) != problem:
                logger.error(
                    "task=%s was handed down, is not taken, and is tried again: %s", descriptor.task, problem
                )
            self._problems[descriptor.task] = problem
            return False
        return True

    def _is_news(self, descriptor: TaskDescriptor) -> bool:
        """Whether the parent is not behind what was posted here, nor says again what is known."""
        known = self._ledger.get(descriptor.task)
        if known is None:
            return True
        same = descriptor.revision == known.descriptor.revision and descriptor.same_work(known.descriptor)
        return not same and descriptor.revision >= known.descriptor.revision

    def _is_later(self, descriptor: TaskDescriptor) -> bool:
        known = self._ledger.get(descriptor.task)
        return known is not None and descriptor.revision > known.descriptor.revision

    def _changed(self, task: str) -> None:
        # What stood in its way may have ended.
        if task in self._waiting:
            self._news.set()
