"""Fetches artefacts from one front, in the thread that asks; a download that broke off goes on where it was.

    FrontClient.offer / fetch
    ├── NotYet          it is being made, or fetched from further above: ask again
    ├── Unavailable     nobody answers, or the download was cut: try again, it goes on
    ├── Refused         there is no such task or artefact (`unknown`), it cannot be made (`export`), or the
    │                   front is for other regions (`region`)
    ├── ArtefactError   what came is too large, or not what was offered; nothing of it is left
    ├── DiskFailed      the disk did not take it
    └── Canceled        it was called off

Plain `http.client`: what it needs is in memory anyway, on a device too.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import logging
import math
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from trellis.artefacts.offer import NotYet, Offer, file_path, offer_path
from trellis.artefacts.store import ArtefactStore
from trellis.errors import (
    ArtefactError,
    Canceled,
    ConfigError,
    DiskFailed,
    Refused,
    TrellisError,
    Unavailable,
)
from trellis.http.errors import from_json
from trellis.loopback import is_loopback
from trellis.tls import TlsFiles, client_context

logger = logging.getLogger(__name__)

_ANSWER_S = 15.0
_ANSWER_BYTES = 65536
_PIECE_BYTES = 65536
_AGAIN_S, _AGAIN_UNSAID_S = (0.5, 30.0), 2.0
_RANGE = re.compile(r"bytes ([0-9]{1,15})-([0-9]{1,15})/([0-9]{1,15})")


class FrontClient:
    """Asks one front; from one thread, but for `abort`.

    Args:
        address: `host:port` of the front.
        tls: CA and certificate; None only on loopback.
    """

    def __init__(self, address: str, *, tls: TlsFiles | None) -> None:
        host, _, port = address.rpartition(":")
        self.address, self._host, self._port = address, host.strip("[]"), int(port)
        if tls is None and not is_loopback(self._host):
            raise ConfigError(f"front {address!r}", "is beyond this machine, where nothing goes unencrypted")
        self._context = None if tls is None else client_context(tls)
        self._connection: http.client.HTTPConnection | None = None
        self._aborted = False

    def offer(self, task: str, runtime: str) -> Offer:
        """Return which artefact a task trains from with that runtime."""
        with self._asked(offer_path(task, runtime), {}) as response:
            offer = Offer.parse(response.read(_ANSWER_BYTES), where=self.address)
        if offer.runtime != runtime:
            problem = f"is for {offer.runtime[:40]!r}, {runtime!r} is due"
            raise ArtefactError(f"offer of an artefact by {self.address}", problem)
        return offer

    def fetch(
        self, offer: Offer, store: ArtefactStore, *, should_stop: Callable[[], bool] = lambda: False
    ) -> Path:
        """Return the artefact's file in `store`, whole and checked."""
        offer.require_size(store.limit)
        if (path := store.find_intact(offer.sha256)) is not None:
            return path
        partial = store.partial(offer.sha256)
        try:
            while True:
                held = _held(partial, offer)
                if held < offer.size:
                    self._complete(offer, partial, held, should_stop)
                try:
                    return store.keep(offer.sha256)
                except ArtefactError:
                    if not held:
                        raise
                    logger.warning("what was left of an earlier download is spoilt: it begins again")
        except ArtefactError:
            store.discard(offer.sha256)
            raise

    def abort(self) -> None:
        """End what is being asked, from another thread; nothing more is asked."""
        self._aborted = True
        connection = self._connection
        if connection is not None and connection.sock is not None:
            with contextlib.suppress(OSError):
                connection.sock.shutdown(socket.SHUT_RDWR)

    @contextmanager
    def _asked(self, path: str, headers: dict[str, str]) -> Iterator[http.client.HTTPResponse]:
        if self._aborted:
            raise Canceled(f"{self.address} is asked no more")
        connection = self._connection = self._connect()
        asked = False  # and not answered yet
        try:
            connection.connect()
            if self._aborted:  # it saw no socket to shut down
                raise Canceled(f"{self.address} is asked no more")
            asked = True
            connection.request("GET", path, headers=headers)
            response = connection.getresponse()
            asked = False
            if response.status not in {200, 206}:
                raise self._error(response)
            yield response
        except (OSError, http.client.HTTPException) as error:
            if self._aborted:
                raise Canceled(f"{self.address} is asked no more") from None
            why = str(error) or type(error).__name__
            if asked and self._context is not None and isinstance(error, ConnectionError):
                # From TLS 1.3 on a certificate is refused after the handshake, and so without a word.
                why = (
                    f"it hung up without an answer ({why}), as it does where its CA has not signed our "
                    "certificate, or where it was ended or started again just then"
                )
            raise Unavailable(f"{self.address} does not give an artefact: {why}") from None
        finally:
            self._connection = None
            connection.close()

    def _connect(self) -> http.client.HTTPConnection:
        if self._context is None:
            return http.client.HTTPConnection(self._host, self._port, timeout=_ANSWER_S)
        return http.client.HTTPSConnection(self._host, self._port, timeout=_ANSWER_S, context=self._context)

    def _error(self, response: http.client.HTTPResponse) -> TrellisError:
        try:
            body = json.loads(response.read(_ANSWER_BYTES))
        except ValueError:
            body = None
        error = from_json(response.status, body, url=self.address)
        if response.status == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            return ArtefactError("artefact", f"{self.address} has less of it than it offered")
        if isinstance(error, Refused) and error.code == NotYet.code:
            return NotYet(str(error), again_s=_again_s(response.headers.get("retry-after")))
        if type(error) is TrellisError:
            # A stranger on that port, or an older Trellis: it may be another's turn.
            return Unavailable(str(error))
        return error

    def _complete(self, offer: Offer, partial: Path, held: int, should_stop: Callable[[], bool]) -> None:
        """Write what is missing after the first `held` bytes."""
        began = time.monotonic()
        asked = {"range": f"bytes={held}-"} if held else {}
        with self._asked(file_path(offer.sha256), asked) as response:
            start = self._begin_of(response, offer, held)
            with _Partial(partial, start) as file:
                while piece := response.read1(_PIECE_BYTES):
                    if should_stop():
                        raise Canceled("the download was called off")
                    file.append(piece)
                    if file.size > offer.size:
                        raise _of_other_size(offer, self.address, file.size)
        if file.size < offer.size:
            raise Unavailable(f"{self.address} broke off after {file.size} of {offer.size} bytes")
        what = f"artefact {offer.sha256[:12]}… for {offer.runtime} from {self.address}"
        logger.info("%s: bytes %d to %d in %.1f s", what, start, offer.size, time.monotonic() - began)

    def _begin_of(self, response: http.client.HTTPResponse, offer: Offer, held: int) -> int:
        """Return from which byte on the file comes."""
        if response.status == http.client.PARTIAL_CONTENT:
            given = response.headers.get("content-range", "")
            match = _RANGE.fullmatch(given)
            if match is None or tuple(map(int, match.groups())) != (held, offer.size - 1, offer.size):
                raise ArtefactError(
                    f"artefact {offer.sha256[:12]}…",
                    f"{self.address} gives {given[:80]!r}, bytes {held} to {offer.size - 1} of {offer.size} "
                    "are due",
                )
            return held
        if response.length is not None and response.length != offer.size:
            raise _of_other_size(offer, self.address, response.length)
        return 0


class _Partial:
    """What has come of an artefact: its first `size` bytes. An error of the disk is `DiskFailed`."""

    def __init__(self, path: Path, size: int) -> None:
        self._path, self.size = path, size

    def __enter__(self) -> Self:
        try:
            self._file = self._path.open("ab" if self.size else "wb")
        except OSError as error:
            raise self._failed(error) from error
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        # Every piece was flushed but one that failed, which would fail again, and in other words.
        with contextlib.suppress(OSError):
            self._file.close()

    def append(self, piece: bytes) -> None:
        try:
            self._file.write(piece)
            self._file.flush()
        except OSError as error:
            raise self._failed(error) from error
        self.size += len(piece)

    def _failed(self, error: OSError) -> DiskFailed:
        return DiskFailed(f"{self._path} cannot be written: {error.strerror}; free space there")


def _held(partial: Path, offer: Offer) -> int:
    """Return how many bytes of an artefact are here."""
    try:
        held = partial.stat().st_size
    except FileNotFoundError:
        return 0
    return held if held <= offer.size else 0


def _of_other_size(offer: Offer, address: str, came: int) -> ArtefactError:
    return ArtefactError(
        f"artefact {offer.sha256[:12]}…", f"{address} gives {came} bytes, it offered {offer.size}"
    )


def _again_s(retry_after: str | None) -> float:
    least, most = _AGAIN_S
    try:
        again_s = float(retry_after or _AGAIN_UNSAID_S)
    except ValueError:
        return _AGAIN_UNSAID_S
    return _AGAIN_UNSAID_S if math.isnan(again_s) else min(max(again_s, least), most)
