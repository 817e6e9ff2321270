"""Fronts that give artefacts, honest and otherwise, for whoever fetches them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from trellis.artefacts.download import FrontClient
from trellis.artefacts.offer import Offer
from trellis.http.server import HttpServer

CONTENT = bytes(range(256)) * 4096  # 1 MiB
DIGEST = hashlib.sha256(CONTENT).hexdigest()


def offer_of(content: bytes = CONTENT, *, runtime: str = "onnx") -> Offer:
    """Return the honest offer of a content."""
    digest = hashlib.sha256(content).hexdigest()
    return Offer(runtime=runtime, model="softmax", sha256=digest, size=len(content))


class OneFile:
    """A `Source` with one artefact, for every task."""

    def __init__(self, folder: Path, content: bytes = CONTENT) -> None:
        self.content = content
        self.path = folder / hashlib.sha256(content).hexdigest()
        folder.mkdir(parents=True, exist_ok=True)
        self.path.write_bytes(content)
        self.offered = offer_of(content)
        self.failure: Exception | None = None
        self.asked = self.given = 0

    async def offer(self, task: str, runtime: str) -> Offer:
        self.asked += 1
        if self.failure is not None:
            raise self.failure
        return self.offered.model_copy(update={"runtime": runtime})

    def file(self, sha256: str) -> Path | None:
        if len(sha256) != 64:
            raise ValueError(f"{sha256!r} is no SHA-256")  # as a store says it
        if sha256 != self.offered.sha256:
            return None
        self.given += 1
        return self.path


class Scripted:
    """An ASGI app that answers each request for a file by the next of `answers`, the last one for ever.

    Attributes:
        ranges: What each request for a file asked of it.
    """

    def __init__(self, offer: Offer, *answers: Callable[[str | None], Response]) -> None:
        self._offer, self._answers = offer, list(answers)
        self.ranges: list[str | None] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"].startswith("/v1/tasks/"):
            runtime = scope["path"].rpartition("/")[2]
            offer = self._offer.model_copy(update={"runtime": runtime})
            await Response(offer.to_json())(scope, receive, send)
            return
        asked = dict(scope["headers"]).get(b"range")
        self.ranges.append(None if asked is None else asked.decode())
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        await answer(self.ranges[-1])(scope, receive, send)


class Switched:
    """An ASGI app that may be another one with every request."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, send)


class Cut(Response):
    """Says that it has `content`, and is cut after `after` bytes of it."""

    def __init__(self, content: bytes, after: int) -> None:
        super().__init__(content)
        self._after = after

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body[: self._after], "more_body": True})


def partial(content: bytes, start: int, *, total: int | None = None) -> Response:
    """Return the honest rest of a content."""
    size = len(content) if total is None else total
    headers = {"content-range": f"bytes {start}-{size - 1}/{size}"}
    return Response(content[start:], status_code=206, headers=headers)


def said(offer: Offer) -> dict[str, object]:
    """Return an offer as JSON has it."""
    found: dict[str, object] = json.loads(offer.to_json())
    return found


@asynccontextmanager
async def front(app: ASGIApp) -> AsyncIterator[FrontClient]:
    """Serve `app`, and yield who asks it."""
    async with HttpServer(app, host="127.0.0.1", port=0, tls=None) as server:
        yield FrontClient(f"127.0.0.1:{server.port}", tls=None)
