"""A publication that is confirmed just as its publisher is canceled."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from trellis.mqtt.connection import _MqttSession
from trellis.mqtt.messages import Publication


class Confirming:
    """Waits for a confirmation as aiomqtt's client does."""

    def __init__(self) -> None:
        self.confirmed = asyncio.Event()

    async def publish(self, *_: Any, **__: Any) -> None:
        await asyncio.wait_for(self.confirmed.wait(), 60)


async def publish_for_ever(client: Any) -> None:
    session = _MqttSession(client)
    while True:
        await session.publish(Publication("trellis/v1/a", b"", 1, False))
        await asyncio.sleep(0)


@pytest.mark.parametrize("turns", range(4))
async def test_a_cancellation_in_the_turn_of_the_confirmation_is_not_forgotten(turns: int) -> None:
    client = Confirming()
    publishing = asyncio.create_task(publish_for_ever(client))
    await asyncio.sleep(0.01)  # it waits for the confirmation
    client.confirmed.set()
    for _ in range(turns):
        await asyncio.sleep(0)
    publishing.cancel()
    done, _ = await asyncio.wait({publishing}, timeout=10)
    publishing.cancel()
    assert done == {publishing}
    assert publishing.cancelled()


async def test_who_is_canceled_may_publish_what_is_left() -> None:
    client = Confirming()
    client.confirmed.set()
    said = 0

    async def end() -> None:
        nonlocal said
        try:
            await asyncio.Event().wait()
        finally:
            for _ in range(2):
                await _MqttSession(client).publish(Publication("trellis/v1/a", b"", 1, False))  # type: ignore[arg-type]
                said += 1

    ending = asyncio.create_task(end())
    await asyncio.sleep(0)
    ending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await ending
    assert said == 2
