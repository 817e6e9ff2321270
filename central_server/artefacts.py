"""What the server's tasks train from, for devices without PyTorch: exported ahead, or when the first asks."""

from __future__ import annotations

import logging
from collections import defaultdict
from pathlib import Path

from central_server.exporting import Exporter, Wanted
from central_server.task import ServerTask
from central_server.tasks import Tasks
from trellis.artefacts.offer import RUNTIMES, Offer
from trellis.errors import PayloadError, Refused
from trellis.mqtt import Bus
from trellis.payloads import Info
from trellis.topics import Kind, Topics

logger = logging.getLogger(__name__)


class TaskArtefacts:
    """The artefacts of `tasks`; it is a `trellis.artefacts.serving.Source`."""

    def __init__(self, tasks: Tasks, exporter: Exporter) -> None:
        self._tasks, self._exporter = tasks, exporter
        self._runtimes: defaultdict[str, set[str]] = defaultdict(set)  # by region: what devices train with

    async def offer(self, task: str, runtime: str) -> Offer:
        """Return what a task trains from; see `Exporter.offer`.

        Raises:
            Refused: There is no such task, or it has ended (`unknown`).
        """
        found = self._tasks.find(task)
        if found.ended:
            raise Refused("unknown", f"task {task!r} has ended: nothing trains for it")
        return await self._exporter.offer(Wanted.of(found.descriptor, runtime))

    def file(self, sha256: str) -> Path | None:
        """Return the artefact of that digest, None if it is not here."""
        return self._exporter.store.find(sha256)

    async def begin(self, task: ServerTask) -> None:
        """Have exported what devices of a task's regions need that have said so."""
        for runtime in sorted(set().union(*(self._runtimes[region] for region in task.descriptor.regions))):
            await self._exporter.begin(Wanted.of(task.descriptor, runtime))

    async def listen(self, bus: Bus, topics: Topics) -> None:
        """Hear what devices train with, and export ahead for the tasks that run, until canceled."""
        async with bus.subscribe(topics.filter(Kind.DEVICE_INFO)) as messages:
            async for message in messages:
                try:
                    region = topics.parse(message.topic).region
                    backend = Info.parse(message.payload).backend if message.payload else None
                except PayloadError as error:
                    logger.warning("topic=%s: dropped: %s", message.topic, error)
                    continue
                if backend in RUNTIMES and backend not in self._runtimes[region]:
                    self._runtimes[region].add(backend)
                    await self._begin_for(region, backend)

    async def _begin_for(self, region: str, runtime: str) -> None:
        for task in self._tasks:
            if not task.ended and region in task.descriptor.regions:
                await self._exporter.begin(Wanted.of(task.descriptor, runtime))
