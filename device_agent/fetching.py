"""Fetches what a task trains from, where this device has no PyTorch, before it connects to its server."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Sequence
from pathlib import Path

from trellis.artefacts.download import FrontClient
from trellis.artefacts.offer import NotYet, Offer
from trellis.artefacts.store import ArtefactStore
from trellis.errors import ArtefactError, Canceled, InvalidInput, Refused, Unavailable
from trellis.flower.link_loop import Halt
from trellis.payloads import Reason
from trellis.tls import TlsFiles

logger = logging.getLogger(__name__)

_AGAIN_S, _AGAIN_MOST_S = 0.5, 30.0


class Fetcher:
    """Fetches one task's artefact.

    Args:
        store: The device's cache.
        tls: Its certificate; None on loopback.
        halt: Ends the task's thread.
        tell: Says what is waited for; None: it is there, or on its way.
    """

    def __init__(
        self, store: ArtefactStore, *, tls: TlsFiles | None, halt: Halt, tell: Callable[[Reason | None], None]
    ) -> None:
        self._store, self._tls, self._halt, self._tell = store, tls, halt, tell
        self._told: Reason | None = None
        self._lies: set[tuple[str, str]] = set()  # the front, and the digest of what it did not give
        self._failures = 0

    def fetch(self, task: str, runtime: str, fronts: Sequence[str]) -> Path:
        """Return the artefact's file in the store, whole and checked.

        Args:
            task: The task's name.
            runtime: What is to train.
            fronts: Whom to ask, `host:port`; the next one where one is away, does not know the task or the
                device, or gives something that cannot be used.

        Raises:
            Refused: It cannot be exported (`export`).
            ArtefactError: Of the last front: it is too large, or not what was offered; nothing of it is left.
            DiskFailed: The disk does not take it.
            Canceled: The task has ended meanwhile, which alone ends the wait for what is not there yet.
        """
        self._tell(None)
        self._store.tidy()
        clients = [FrontClient(front, tls=self._tls) for front in fronts]
        while not self._halt.called:
            try:
                return self._fetch_from_any(clients, task, runtime)
            except NotYet as error:
                self._failures = 0
                waits = Reason(code="artefact", message=str(error))
                # Thousands that were told the same come spread.
                again_s = random.uniform(1.0, 2.0) * error.again_s  # noqa: S311 - no secret
            except Unavailable as error:
                waits, again_s = Reason(code="unavailable", message=str(error)), self._backoff_s()
            except Refused as error:
                if error.code == "export":
                    raise
                # A task may reach its devices before its server, and who is not let in be let in later.
                waits, again_s = Reason(code=error.code, message=str(error)), self._backoff_s()
            self._say(waits)
            self._halt.wait_called(again_s)
        raise Canceled(f"task {task!r} has ended before what it trains from was here")

    def _fetch_from_any(self, clients: Sequence[FrontClient], task: str, runtime: str) -> Path:
        """Return the artefact of the first front that has it; what the last one says is final."""
        *caches, last = clients
        for client in caches:
            try:
                return self._fetch_from(client, task, runtime)
            except NotYet:
                raise
            except Refused as error:
                if error.code == "export":
                    raise
                logger.warning("%s", error)
            except (Unavailable, InvalidInput) as error:
                logger.warning("%s", error)
        return self._fetch_from(last, task, runtime)

    def _fetch_from(self, client: FrontClient, task: str, runtime: str) -> Path:
        offer = client.offer(task, runtime)
        offer.require_size(self._store.limit, remedy="start the device with a higher --artefact-mb")
        lie = (client.address, offer.sha256)
        if lie in self._lies:
            raise Unavailable(f"{client.address} offers again what it did not give")
        self._say(None)
        held = self._held(offer)
        try:
            path = client.fetch(offer, self._store, should_stop=lambda: self._halt.called)
        except Unavailable:
            if self._held(offer) > held:
                self._failures = 0  # a bad link that brings some of it each time
            raise
        except ArtefactError:
            self._lies.add(lie)  # it is not fetched again with every question
            raise
        logger.info("task %s: trains by %s from artefact %s", task, runtime, offer.sha256)
        return path

    def _held(self, offer: Offer) -> int:
        partial = self._store.partial(offer.sha256)
        return partial.stat().st_size if partial.exists() else 0

    def _backoff_s(self) -> float:
        longest = min(_AGAIN_MOST_S, _AGAIN_S * 2.0 ** min(self._failures, 20))
        self._failures += 1
        return random.uniform(_AGAIN_S / 2, longest)  # noqa: S311 - spreads a fleet's questions, no secret

    def _say(self, waits: Reason | None) -> None:
        # What goes on for minutes is told once, not with every try.
        if waits == self._told:
            return
        if waits is not None:
            logger.warning("%s", waits.message)
        self._tell(waits)
        self._told = waits
