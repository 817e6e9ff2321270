"""The agent's side of `trellis.flower.handover`, and the SuperNode's way to the server.

One loopback port for both: `POST /v1/fleet/…` is passed on to the server's front with the device's
certificate, `POST /message` takes what a ClientApp hands over, and answers it when the agent has.
"""

from __future__ import annotations

import asyncio
import queue
import secrets
import threading
import time
from typing import Annotated

from fastapi import Depends, FastAPI, Header, Request, Response
from flwr.app import Message, Metadata
from starlette.types import Receive, Scope, Send

from trellis.errors import Refused, Unavailable
from trellis.flower.front import FleetFront
from trellis.flower.handover import CONTENT, Failure
from trellis.flower.parcels import from_bytes, to_bytes
from trellis.http.server import create_app

_FLEET = "/v1/fleet/"
_ASK = f"{_FLEET}pull-messages"
_TTL_S = 3600.0


class Question:
    """A message that waits for its reply; made and settled on the event loop."""

    def __init__(self, message: Message) -> None:
        self.message = message
        self.reply: asyncio.Future[Message] = asyncio.get_running_loop().create_future()

    def settle(self, reply: Message | Exception) -> None:
        """Give the reply, or why there is none; whoever asked may be gone."""
        if self.reply.done():
            return
        if isinstance(reply, Exception):
            self.reply.set_exception(reply)
        else:
            self.reply.set_result(reply)


class HandoverDesk:
    """The ASGI app of one SuperNode's desk.

    Attributes:
        questions: What ClientApps handed over, for the agent's thread.
        heard_at: When the SuperNode last called the server, on the monotonic clock.
    """

    def __init__(self, front: FleetFront, token: str) -> None:
        self.questions: queue.SimpleQueue[Question] = queue.SimpleQueue()
        self.heard_at = time.monotonic()
        self._front = front
        self._app = _create_app(self, token)
        self._unsettled: set[Question] = set()
        self._asks = 0
        self._asked = threading.Condition()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith(_FLEET):
            await self._app(scope, receive, send)
            return
        self.heard_at = time.monotonic()
        if scope["path"] == _ASK:
            with self._asked:
                self._asks += 1
                self._asked.notify_all()
        await self._front(scope, receive, send)
        self.heard_at = time.monotonic()

    @property
    def asks(self) -> int:
        """How often the SuperNode has asked for a message."""
        return self._asks

    def wait_ask(self, after: int, timeout_s: float) -> bool:
        """Return whether it has asked more often than `after`, as soon as it has."""
        with self._asked:
            return self._asked.wait_for(lambda: self._asks > after, timeout_s)

    async def answer(self, message: Message) -> Message:
        """Return the agent's reply to `message`.

        Raises:
            Unavailable: The SuperNode is being ended.
        """
        question = Question(message)
        self._unsettled.add(question)
        try:
            self.questions.put(question)
            return await question.reply
        finally:
            self._unsettled.discard(question)

    def release(self) -> None:
        """Let go of whoever still waits for a reply."""
        for question in list(self._unsettled):
            question.settle(Unavailable("the device's agent is ending its SuperNode"))


def _create_app(desk: HandoverDesk, token: str) -> FastAPI:
    async def authorised(authorization: Annotated[str, Header()] = "") -> None:
        # Bytes: compare_digest refuses a str that is not ASCII.
        if not secrets.compare_digest(authorization.encode(), f"Bearer {token}".encode()):
            raise Refused("token", "the agent's desk needs the bearer token that it handed its SuperNode")

    app = create_app("Trellis handover")

    @app.post("/message", dependencies=[Depends(authorised)])
    async def message(request: Request, message_id: str, run_id: int, kind: str) -> Response:
        content = from_bytes(await request.body())
        metadata = Metadata(run_id, message_id, 0, 0, "", "", time.time(), _TTL_S, kind)
        # Not in Flower's overloads; there is no other way to make one outside of its own processes.
        asked = Message(content=content, metadata=metadata)  # type: ignore[call-overload]
        reply = await desk.answer(asked)
        if reply.has_error():
            failure = Failure(code=reply.error.code, reason=reply.error.reason or "")
            return Response(failure.model_dump_json(), media_type="application/json")
        return Response(to_bytes(reply.content), media_type=CONTENT)

    return app
