"""Publishing inside a task group, and while that group is ending."""

from __future__ import annotations

import asyncio

import pytest

from regional_gateway.outlet import IN_FLIGHT, Outlet
from trellis.mqtt import MemoryBroker, Publication


class _Stopped(Exception):
    """Ends the group."""


async def test_what_is_sent_while_its_group_ends_is_published_nevertheless() -> None:
    broker = MemoryBroker()
    async with broker.bus("gateway") as bus:
        await bus.wait_connected(60)
        with pytest.raises(ExceptionGroup) as stopped:
            await _send_at_the_end(Outlet(bus, group := asyncio.TaskGroup()), group)
        assert stopped.group_contains(_Stopped, depth=1)
        assert len(stopped.value.exceptions) == 1, "nothing that was sent is an error"
    async with broker.bus("reader") as bus, asyncio.timeout(60):
        await bus.wait_connected(60)
        async with bus.subscribe("said/#") as messages:
            said = [await anext(messages) for _ in range(IN_FLIGHT + 1)]
    assert sorted(int(message.topic.rpartition("/")[2]) for message in said) == [*range(IN_FLIGHT + 1)]


async def _send_at_the_end(outlet: Outlet, group: asyncio.TaskGroup) -> None:
    """Send more than may be unanswered at a time from a task that only hears late that its group ends."""

    async def last_words() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            for number in range(IN_FLIGHT + 1):
                await outlet.send(Publication(f"said/{number}", b"{}", retain=True))

    async def stop() -> None:
        raise _Stopped

    async with group:
        group.create_task(last_words(), name="last words")
        await asyncio.sleep(0)
        group.create_task(stop(), name="stop")
