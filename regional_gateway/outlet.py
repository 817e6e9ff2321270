"""Publishing without waiting for the broker's answer: many at a time, and in order."""

from __future__ import annotations

import asyncio

from trellis.mqtt import Bus, Publication

IN_FLIGHT = 64


class Outlet:
    """A broker to publish on, inside a task group.

    A broker's acknowledgement takes a round trip; a round's copy must not wait for the one before it.
    """

    def __init__(self, bus: Bus, group: asyncio.TaskGroup) -> None:
        self.bus = bus
        self._group = group
        self._window = asyncio.Semaphore(IN_FLIGHT)

    async def send(self, publication: Publication) -> None:
        """Return once `publication` is on its way; waits only while 64 are unanswered."""
        await self._window.acquire()
        publishing = self._publish(publication)
        try:
            # Tasks start in the order of their making, so publications leave in order.
            task = self._group.create_task(publishing, name=f"publish {publication.topic}")
        except RuntimeError:
            # The group is ending; the bus outlives it, and says before it closes what it has been given.
            self._window.release()
            await publishing
        else:
            task.add_done_callback(lambda _: self._window.release())

    async def _publish(self, one: Publication) -> None:
        await self.bus.publish(one.topic, one.payload, qos=one.qos, retain=one.retain)
