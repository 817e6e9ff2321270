"""Takes in the tasks that the gateway above publishes, as if they had been posted here."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Awaitable, Callable

from regional_gateway.ledger import Ledger
from regional_gateway.place import Place
from trellis import descriptor as descriptors
from trellis.descriptor import TaskDescriptor
from trellis.envelope import Envelope
from trellis.errors import InvalidInput, Refused, Unavailable
from trellis.mqtt import Bus
from trellis.topics import Kind, Topics

logger = logging.getLogger(__name__)


async def take_over(
    parent: Bus,
    topics: Topics,
    place: Place,
    ledger: Ledger,
    post: Callable[[bytes], Awaitable[object]],
) -> None:
    """Post what the parent publishes for this region, a cancellation too, until cancelled."""
    async with parent.subscribe(topics.filter(Kind.DESCRIPTOR, region=place.parent)) as messages:
        async for message in messages:
            if not message.payload:
                continue  # each gateway clears its own
            try:
                descriptor = descriptors.parse_json(Envelope.parse(message.payload).payload)
            except InvalidInput as error:
                logger.warning("dropped what came on topic=%s: %s", message.topic[:200], error)
                continue
            if place.region in descriptor.regions and _is_news(descriptor, ledger):
                # A refusal is logged, and noted on the task, where it is posted.
                with contextlib.suppress(Refused, Unavailable):
                    await post(message.payload)


def _is_news(descriptor: TaskDescriptor, ledger: Ledger) -> bool:
    """Whether the parent is not behind what was posted here, nor says again what is known."""
    known = ledger.get(descriptor.task)
    if known is None:
        return True
    same = descriptor.revision == known.descriptor.revision and descriptor.same_work(known.descriptor)
    return not same and descriptor.revision >= known.descriptor.revision
