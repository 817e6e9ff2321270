"""Serves artefacts over a front: who may reach the front, by its TLS, may have what its tasks train from."""

from __future__ import annotations

import asyncio
import logging
import re
from collections import Counter
from pathlib import Path
from typing import Protocol

from fastapi import FastAPI, Request, Response
from fastapi.responses import FileResponse, JSONResponse
from starlette.types import Message, Receive, Scope, Send

from trellis.artefacts.offer import DIGEST, RUNTIMES, NotYet, Offer, unknown_file, unknown_runtime
from trellis.errors import InvalidInput
from trellis.http.errors import to_json
from trellis.http.server import create_app
from trellis.keys.principals import SERVER

logger = logging.getLogger(__name__)

MOST_AT_ONCE = 32
"""Files that are sent at one time; whoever comes then is asked to come again."""
MOST_EACH = 4
"""How many of them are one principal's; a proxy before the front, which has the server's, counts its own."""
PIECE_S = 30.0
"""How long the reader may take to make room for 64 KiB more: less than 2 KB/s stands still."""
MOST_S = 600.0
"""How long one file may take to be sent: a reader that stands still gives way."""
_RANGE = re.compile(r"bytes=[0-9]{1,15}-[0-9]{0,15}")


class Source(Protocol):
    """Who has a tier's artefacts."""

    async def offer(self, task: str, runtime: str) -> Offer:
        """Return what a task trains from; raises Refused, or NotYet while it is made or fetched."""

    def file(self, sha256: str) -> Path | None:
        """Return the artefact of that digest, None if it is not here."""


def create_artefact_app(source: Source) -> FastAPI:
    """Return the app that serves `trellis.artefacts.offer.PATHS`."""
    app = create_app("Trellis artefacts")
    sending = _Sending()

    @app.exception_handler(NotYet)
    async def not_yet(_request: Request, error: NotYet) -> JSONResponse:
        body = to_json(error)
        body["error"]["code"] = error.code
        return JSONResponse(body, status_code=503, headers={"retry-after": f"{error.again_s:.0f}"})

    @app.get("/v1/tasks/{task}/artefacts/{runtime}")
    async def offer(task: str, runtime: str) -> Response:
        if runtime not in RUNTIMES:
            raise unknown_runtime(runtime)
        offered = await source.offer(task, runtime)
        return Response(offered.to_json(), media_type="application/json")

    @app.get("/v1/artefacts/{sha256}")
    async def file(sha256: str, request: Request) -> Response:
        found = source.file(sha256) if re.fullmatch(DIGEST, sha256) else None
        if found is None:
            raise unknown_file(sha256)
        asked = request.headers.get("range")
        if asked is not None and not _RANGE.fullmatch(asked):
            raise InvalidInput("header range", f"{asked[:80]!r} came, bytes=FROM- or bytes=FROM-TO is due")
        principal = request.scope["state"].get("principal")
        who = principal or (request.client.host if request.client else "?")
        logger.info("artefact %s: %s to %s", sha256, asked or "all", who)
        return sending.response(found, principal)

    return app


class _Sending:
    """Counts what is being sent, and to whom."""

    def __init__(self) -> None:
        self._now: Counter[str | None] = Counter()

    def response(self, path: Path, principal: str | None) -> Response:
        """Return the response that sends a file, or what a request's range asks of it.

        Raises:
            NotYet: Too many are being sent, or too many to that principal; without TLS nobody is told apart.
        """
        if (total := self._now.total()) >= MOST_AT_ONCE:
            raise NotYet(f"{total} artefacts are being sent: come again")
        if principal not in (None, SERVER.common_name) and self._now[principal] >= MOST_EACH:
            raise NotYet(f"{MOST_EACH} artefacts are being sent to {principal!r}: come again")
        return _Counted(path, principal, self._now)


class _Counted(FileResponse):
    """A file on its way, counted while it is."""

    def __init__(self, path: Path, principal: str | None, now: Counter[str | None]) -> None:
        # Its name is its content's digest, so that a range goes on however often it was had anew.
        super().__init__(path, media_type="application/octet-stream", headers={"etag": f'"{path.name}"'})
        self._principal, self._sent_now = principal, now

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def timely(message: Message) -> None:
            async with asyncio.timeout(PIECE_S):
                await send(message)

        self._sent_now[self._principal] += 1
        try:
            async with asyncio.timeout(MOST_S):
                await super().__call__(scope, receive, timely)
        except TimeoutError:
            logger.warning("artefact %s is read too slowly by %s", self.path, self._principal or "its reader")
            # A mere close waits until what is written has been read; who asked goes on from where it was.
            scope["state"]["abort"]()
        finally:
            self._sent_now[self._principal] -= 1
            self._sent_now += Counter()  # forgets who has nothing now
