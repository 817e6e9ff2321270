"""What a region says of its own part in the tasks that it averages, on all its brokers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

from regional_gateway.announcer import Announcer
from regional_gateway.ledger import TaskRecord
from regional_gateway.task_folders import TaskFolders
from trellis.errors import Unavailable
from trellis.execution import ExecutionReport
from trellis.flower.backchannel import Above
from trellis.mqtt import Publication
from trellis.payloads import Execution, ExecutionState, Reason, Round
from trellis.tls import TlsFiles
from trellis.topics import Kind, Topics


class OwnPart:
    """The region's executions and rounds; it is the `Outlet` of the former.

    Args:
        topics: The region's topics.
        region: Its name.
        root: The folder of its tasks' folders.

    Attributes:
        folders: Where executions survive.
        announcer: Says it; None while the gateway is starting or ending.
    """

    def __init__(self, topics: Topics, region: str, root: Path) -> None:
        self._topics, self._region = topics, region
        self.folders = TaskFolders(root)
        self.announcer: Announcer | None = None
        self._reports: dict[str, ExecutionReport] = {}

    def report(self, task: str) -> ExecutionReport:
        """Return what says the execution of a task."""
        if task not in self._reports:
            topic = self._topic(task)
            self._reports[task] = ExecutionReport(
                self, self.folders, task=task, topic=topic, write=asyncio.to_thread
            )
        return self._reports[task]

    def execution(self, task: str) -> Execution | None:
        """Return the execution of a task as it was said last."""
        return self.report(task).execution

    def standing(self, record: TaskRecord) -> Iterator[Publication]:
        """Yield a task's execution as it must stand on the brokers; empty once its topics are cleared."""
        if not self.folders.of(record.task).exists():
            return
        if record.cleared:
            yield Publication(self._topic(record.task), b"", retain=True)
        elif (said := self.report(record.task).standing()) is not None:
            yield said

    async def forget(self, task: str, *, whole: bool) -> None:
        """Clear a task's execution, and remove its runs, or the `whole` of it."""
        if not self.folders.of(task).exists():
            return
        await self.report(task).clear()
        if whole:
            del self._reports[task]
        await asyncio.to_thread(self.folders.remove if whole else self.folders.remove_runs, task)

    async def fail(self, record: TaskRecord, reason: Reason) -> None:
        """Say that the region fails in a task, unless its part in this revision has ended.

        Raises:
            Unavailable: The gateway is starting or ending.
        """
        revision, said = record.descriptor.revision, self.execution(record.task)
        ended = said is not None and said.state.ended and said.revision >= revision
        if not (ended or record.cleared):
            await self.report(record.task).end(ExecutionState.FAILED, reason, revision=revision)

    def above(self, task: str, address: str, tls: TlsFiles | None) -> Above:
        """Return how the app of a task reaches the tier above, at `address`."""
        plain = Above(address=address, folder=str(self.folders.node(task, address)))
        if tls is None:
            return plain
        files = {"ca": tls.ca, "cert": tls.cert, "key": tls.key}
        return plain.model_copy(update={name: str(path.resolve()) for name, path in files.items()})

    async def round(self, task: str, round_: Round) -> None:
        """Publish a round of the region's own.

        Raises:
            Unavailable: The gateway is starting or ending.
        """
        await self._announcer().round(task, round_.to_bytes())

    async def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> None:
        """Publish on the region's broker, and on the parent's where that is another.

        Raises:
            Unavailable: The gateway is starting or ending.
        """
        await self._announcer().everywhere(Publication(topic, payload, qos=qos, retain=retain))

    def _announcer(self) -> Announcer:
        if self.announcer is None:
            raise Unavailable(f"gateway of region {self._region!r} is starting or ending")
        return self.announcer

    def _topic(self, task: str) -> str:
        return self._topics.path(Kind.GATEWAY_EXECUTION, region=self._region, task=task)
