"""The server's tasks: takes new ones and cancellations, by the rules of revisions."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator

from central_server.admission import Admission, Admitted
from central_server.publisher import Publisher
from central_server.store import Store, StoredTask, posted
from central_server.task import ServerTask
from trellis.errors import Refused, Unavailable

logger = logging.getLogger(__name__)

_OUTRUN = {"revision", "conflict", "expired"}
"""Rules that refuse a task file which the server took long ago, and whose task has gone its way since."""


class Tasks:
    """All tasks of this server by name.

    Args:
        start: Called with each task that is to be followed, new or left by an earlier server.
        retire: Called with a task that has ended and is followed no more, because its name runs again.
    """

    def __init__(
        self,
        store: Store,
        publisher: Publisher,
        admission: Admission,
        start: Callable[[ServerTask], None],
        retire: Callable[[ServerTask], Awaitable[None]],
    ) -> None:
        self._store, self._publisher, self._admission = store, publisher, admission
        self._start, self._retire = start, retire
        self._tasks: dict[str, ServerTask] = {}
        self._posting = asyncio.Lock()

    def __iter__(self) -> Iterator[ServerTask]:
        return iter(sorted(self._tasks.values(), key=lambda task: task.name))

    def find(self, name: str) -> ServerTask:
        """Return the task of that name.

        Raises:
            Refused: There is none (code `unknown`).
        """
        task = self._tasks.get(name)
        if task is None:
            known = ", ".join(sorted(self._tasks)[:20]) or "none"
            raise Refused("unknown", f"there is no task {name[:80]!r} at this server; there is: {known}")
        return task

    async def resume(self) -> None:
        """Take up what an earlier server left: every task is shown, and those not ended go on."""
        for stored in await asyncio.to_thread(self._store.load):
            task = ServerTask(stored, self._store, self._publisher, self._admission.data)
            self._tasks[task.name] = task
            try:
                await task.mend()
            except Unavailable:
                pass  # a full disk: the log says so, and the others go on
            except Exception:
                logger.exception("task=%s: what its end has left to write is not written", task.name)
            if not task.ended:
                logger.info(
                    "task=%s state=%s round=%d: goes on", task.name, task.record.state, task.record.round
                )
            self._start(task)

    async def post(self, body: bytes) -> tuple[ServerTask, bool]:
        """Take a signed task; return it, and whether it is new. A cancellation is taken as well.

        Raises:
            InvalidInput: It is no envelope or no descriptor.
            Refused: A rule says no: `untrusted`, `signature`, `revision`, `conflict`, or one of `Admission`.
            Unavailable: It cannot be stored.
        """
        admitted = await asyncio.to_thread(self._admission.verified, body)
        descriptor = admitted.descriptor
        async with self._posting:
            known = self._tasks.get(descriptor.task)
            if known is not None and _compared(known, admitted):
                return known, False
            if descriptor.desired == "canceled":
                return await self._call_off(admitted), False
            # A model is looked up, which may import a package.
            await asyncio.to_thread(self._admission.check, descriptor)
            task = await self._stored(known, StoredTask(admitted.envelope, descriptor, posted(descriptor)))
            self._tasks[task.name] = task
        logger.info("task=%s revision=%d key=%s: posted", task.name, descriptor.revision, admitted.keyid)
        self._start(task)
        return task, True

    async def _stored(self, known: ServerTask | None, new: StoredTask) -> ServerTask:
        task = ServerTask(new, self._store, self._publisher, self._admission.data)
        await task.stage()
        if known is None:
            await task.install(None)
            return task
        await self._retire(known)
        try:
            await task.install(known.descriptor.revision)
        except Unavailable:
            self._start(known)
            raise
        return task

    async def post_at_start(self, body: bytes) -> None:
        """Take the task that the server's command names, at every start with that command anew.

        Raises:
            InvalidInput: It is no envelope or no descriptor.
            Refused: A rule says no to a task that is new here.
        """
        try:
            task, new = await self.post(body)
        except Refused as error:
            name = (await asyncio.to_thread(self._admission.verified, body)).descriptor.task
            if error.code not in _OUTRUN or name not in self._tasks:
                raise
            logger.warning(
                "task=%s: the file given at the start changes nothing, the task stays %s: %s",
                name,
                self._tasks[name].record.state,
                error,
            )
        else:
            logger.info("task=%s: %s", task.name, "posted" if new else f"is here: {task.record.state}")

    async def cancel(self, name: str, body: bytes) -> ServerTask:
        """Call a task off by the operator's next revision.

        Raises:
            InvalidInput: It is no envelope or no descriptor.
            Refused: `unknown`, `untrusted`, `signature`, `revision`, or `conflict`: it says something else.
        """
        self.find(name)
        admitted = await asyncio.to_thread(self._admission.verified, body)
        descriptor = admitted.descriptor
        if descriptor.task != name or descriptor.desired != "canceled":
            raise Refused(
                "conflict",
                f"the call is about {name!r}, the envelope about {descriptor.task!r} with desired "
                f"{descriptor.desired!r}: sign the next revision of {name!r} with desired: canceled",
            )
        async with self._posting:
            if _compared(self.find(name), admitted):
                return self.find(name)
            return await self._call_off(admitted)

    async def _call_off(self, admitted: Admitted) -> ServerTask:
        # The window is not asked: calling off is safe at any time, and a task may outlive its window.
        task = self.find(admitted.descriptor.task)
        if not task.ended:
            await task.call_off(admitted.envelope, admitted.descriptor)
        return task


def _compared(known: ServerTask, admitted: Admitted) -> bool:
    """Whether the server has this very revision already; False for a cancellation, or a new run, that is due.

    Raises:
        Refused: It is older (`revision`), or says something else than what runs (`conflict`).
    """
    mine, theirs = known.descriptor, admitted.descriptor
    if theirs.revision < mine.revision:
        raise Refused(
            "revision",
            f"task {mine.task!r} has revision {mine.revision} here, revision {theirs.revision} came: "
            f"it must be at least {mine.revision + 1} to change anything",
        )
    if theirs.revision == mine.revision:
        if theirs.same_work(mine):
            return True
        raise Refused(
            "conflict",
            f"task {mine.task!r} revision {mine.revision} is here with another content: raise the revision "
            "once it has ended, or choose another name",
        )
    if theirs.desired == "run" and not known.ended:
        raise Refused(
            "conflict",
            f"task {mine.task!r} is here and {known.record.state}: its work does not change while it runs; "
            "cancel it first, or post under another name",
        )
    return False
