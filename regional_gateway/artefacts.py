"""The region's cache of what its devices train from: each artefact comes down once, whoever asks for it."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from regional_gateway.ledger import Ledger
from regional_gateway.place import Place
from trellis.artefacts.download import FrontClient
from trellis.artefacts.offer import NotYet, Offer
from trellis.artefacts.store import ArtefactStore
from trellis.errors import ArtefactError, Refused, TrellisError, Unavailable
from trellis.tls import TlsFiles

logger = logging.getLogger(__name__)

HOLDS_S = 10.0
"""How long the front above is not asked again for an offer, or for a file that it could not give."""
SOON_S = 2.0
"""How long a device's question waits for what has begun to come: most artefacts are here at once."""
_FETCH_AGAIN_S = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Between tries to go on with a download that was cut; after the last, until a device asks again."""

_Asked = tuple[str, int, str, str]  # task, revision, runtime, front above


@dataclass(frozen=True)
class _Known:
    offer: Offer
    heard: float


@dataclass(frozen=True)
class _Failure:
    error: TrellisError
    since: float


class RegionalArtefacts:
    """Artefacts of the region's tasks from `__aenter__` to `__aexit__`; a `trellis.artefacts.serving.Source`.

    While the front above is away, what it offered last still counts.

    Args:
        folder: Where the artefacts are kept.
        tls: The gateway's certificate, or None on loopback.
    """

    def __init__(self, folder: Path, tls: TlsFiles | None) -> None:
        self._store, self._tls = ArtefactStore(folder), tls
        self._ledger: Ledger | None = None
        self._known: dict[_Asked, _Known] = {}
        self._asking: dict[_Asked, asyncio.Task[Offer]] = {}
        self._fetching: dict[str, asyncio.Task[None]] = {}
        self._failed: dict[str, _Failure] = {}  # by digest
        self._clients: set[FrontClient] = set()
        self._ending = threading.Event()

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(self._store.tidy)
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._ending.set()
        for client in list(self._clients):
            client.abort()
        under_way = {*self._asking.values(), *self._fetching.values()}
        if under_way:
            await asyncio.wait(under_way)

    def load(self, ledger: Ledger, place: Place) -> None:
        """Take the region's tasks from `ledger`, and what is above from `place`."""
        self._ledger, self._place = ledger, place

    async def offer(self, task: str, runtime: str) -> Offer:
        """Return what a task trains from, once that is here.

        Raises:
            Refused: There is no such task here, or the server cannot export it.
            NotYet: It is being made, or on its way.
            Unavailable: The front above does not answer, or gives nothing that can be used.
        """
        asked = self._asked(task, runtime)
        offer = await self._offer_above(asked)
        if await asyncio.to_thread(self._store.find_intact, offer.sha256) is not None:
            return offer
        if offer.sha256 not in self._fetching:
            self._raise_failure(offer)
            self._begin_fetching(offer, asked[3])
        await asyncio.wait({self._fetching[offer.sha256]}, timeout=SOON_S)
        if await asyncio.to_thread(self._store.find_intact, offer.sha256) is not None:
            return offer
        self._raise_failure(offer)
        raise NotYet(f"the gateway is fetching {offer.model} for {runtime}, {offer.size} bytes")

    def file(self, sha256: str) -> Path | None:
        """Return the artefact of that digest, None if it is not here."""
        return self._store.find(sha256)

    def _asked(self, task: str, runtime: str) -> _Asked:
        record = self._ledger.get(task) if self._ledger is not None else None
        if record is None or record.cleared:
            raise Refused("unknown", f"task {task[:80]!r} was not posted to the gateway of this region")
        descriptor = record.descriptor
        return (task, descriptor.revision, runtime, self._place.artefacts(descriptor))

    async def _offer_above(self, asked: _Asked) -> Offer:
        """Return the offer of the front above; devices that ask at one time make one question."""
        known = self._known.get(asked)
        if known is not None and time.monotonic() - known.heard < HOLDS_S:
            return known.offer
        if asked not in self._asking:
            question = asyncio.create_task(self._ask(asked), name=f"offer of {asked[0]}")
            self._asking[asked] = question
            question.add_done_callback(lambda _: self._asking.pop(asked, None))
        try:
            # A device that hangs up must not end the question of the others.
            offer = await asyncio.shield(self._asking[asked])
        except Unavailable:
            if known is None:
                raise
            return known.offer
        self._known[asked] = _Known(offer, time.monotonic())
        return offer

    async def _ask(self, asked: _Asked) -> Offer:
        task, _, runtime, front = asked
        client = FrontClient(front, tls=self._tls)
        self._clients.add(client)
        try:
            return await asyncio.to_thread(client.offer, task, runtime)
        except ArtefactError as error:
            # Not the task's end: the server may do better by a device that asks it itself.
            raise Unavailable(str(error)) from error
        finally:
            self._clients.discard(client)

    def _raise_failure(self, offer: Offer) -> None:
        failure = self._failed.pop(offer.sha256, None)
        if failure is None or time.monotonic() - failure.since > HOLDS_S:
            return
        self._failed[offer.sha256] = failure
        region = self._place.region
        raise Unavailable(
            f"the gateway of region {region!r} has no artefact of {offer.model}: {failure.error}"
        )

    def _begin_fetching(self, offer: Offer, front: str) -> None:
        fetching = asyncio.create_task(self._fetch(offer, front), name=f"artefact {offer.sha256[:12]}")
        self._fetching[offer.sha256] = fetching
        fetching.add_done_callback(lambda _: self._fetching.pop(offer.sha256, None))

    async def _fetch(self, offer: Offer, front: str) -> None:
        client = FrontClient(front, tls=self._tls)
        self._clients.add(client)
        try:
            await asyncio.to_thread(self._fetch_in_thread, client, offer)
        except TrellisError as error:
            if not self._ending.is_set():
                logger.error("artefact %s is not here: %s", offer.sha256, error)
                self._failed[offer.sha256] = _Failure(error, time.monotonic())
        finally:
            self._clients.discard(client)

    def _fetch_in_thread(self, client: FrontClient, offer: Offer) -> None:
        for again_s in (*_FETCH_AGAIN_S, None):
            try:
                client.fetch(offer, self._store, should_stop=self._ending.is_set)
            except Unavailable as error:
                logger.warning("artefact %s: %s", offer.sha256, error)
                if again_s is None:
                    raise
                if self._ending.wait(again_s):
                    return
            else:
                return
