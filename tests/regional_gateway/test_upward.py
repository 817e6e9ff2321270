"""What a gateway says above of others, and when it no longer does."""

from __future__ import annotations

import asyncio
import time
from typing import Any, cast

import pytest

from regional_gateway.outlet import Outlet
from regional_gateway.upward import Upward
from trellis.mqtt import Publication
from trellis.topics import Topics

TOPICS = Topics("trellis/v1")
STATE = TOPICS.parse("trellis/v1/eu-1/devices/cam-1/state")


class Above:
    """The parent's broker, as far as this goes."""

    def __init__(self) -> None:
        self.removed = asyncio.Event()
        self.at = 0.0

    async def send(self, publication: Publication) -> None:
        assert not publication.payload
        self.at = time.monotonic()
        self.removed.set()


async def test_after_each_connect_devices_have_the_whole_time_to_come_back(monkeypatch: Any) -> None:
    monkeypatch.setattr("regional_gateway.upward.RETURN_S", 600.0)
    upward, above, connected = Upward(TOPICS), Above(), asyncio.Event()
    upward.note(STATE, b"{}")
    upward.forget_presence()
    clearing = asyncio.create_task(upward.clear_lost(cast(Outlet, above), connected))
    connected.set()
    async with asyncio.timeout(30):
        while connected.is_set():  # noqa: ASYNC110 - it has seen that, and counts from then
            await asyncio.sleep(0)
    monkeypatch.setattr("regional_gateway.upward.RETURN_S", 0.5)
    connected.set()
    second = time.monotonic()
    await asyncio.wait_for(above.removed.wait(), 60)
    clearing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await clearing
    assert above.at - second >= 0.5
    assert upward.standing == ()
