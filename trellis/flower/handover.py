"""From a ClientApp that the stock `flower-supernode` starts to the device's agent beside it, and back.

A SuperNode starts a process for every message, with the app of the server's FAB. That app is `app` of this
module: it hands the message to the agent that started the SuperNode, over loopback, and answers what the
agent answers. So the work is done where it always is: in the warm agent, with its data, journal and reports.
Nothing but Flower's public API is used here.

    POST /message?message_id&run_id&kind    content → content, or Failure as JSON
"""

from __future__ import annotations

import os

import httpx
from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp
from pydantic import BaseModel, ConfigDict

from trellis.errors import ConfigError, PayloadError, Unavailable
from trellis.flower.backchannel import TOKEN_VARIABLE, URL_VARIABLE
from trellis.flower.parcels import from_bytes, is_parcel, to_bytes, unwrap, wrap

CONTENT = "application/octet-stream"
_TIMEOUT = httpx.Timeout(None, connect=5.0)
"""The agent answers when it has trained; if it dies, the connection does."""

app = ClientApp()


class Failure(BaseModel):
    """A Flower error in place of a content."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    code: int
    reason: str


@app.query()
def _query(message: Message, _: Context) -> Message:
    return hand_over(message)


@app.train()
def _train(message: Message, _: Context) -> Message:
    return hand_over(message)


@app.evaluate()
def _evaluate(message: Message, _: Context) -> Message:
    return hand_over(message)


def hand_over(message: Message) -> Message:
    """Return the agent's reply to `message`.

    Raises:
        ConfigError: No agent started this process.
        Unavailable: The agent is gone.
        PayloadError: The message cannot be encoded, or the agent's answer cannot be read.
    """
    try:
        url, token = os.environ[URL_VARIABLE], os.environ[TOKEN_VARIABLE]
    except KeyError as error:
        raise ConfigError(
            "ClientApp of Trellis",
            f"needs {error.args[0]}, which the device's agent sets: run `trellis device --link supernode`",
        ) from None
    parcel = is_parcel(message.content)
    metadata = message.metadata
    asked = {
        "message_id": metadata.message_id,
        "run_id": str(metadata.run_id),
        "kind": metadata.message_type,
    }
    try:
        answer = httpx.post(
            f"{url}/message",
            params=asked,
            content=to_bytes(unwrap(message.content)),
            headers={"authorization": f"Bearer {token}", "content-type": CONTENT},
            timeout=_TIMEOUT,
            trust_env=False,
        )
        answer.raise_for_status()
    except httpx.HTTPError as error:
        raise Unavailable(f"the device's agent does not answer: {error or type(error).__name__}") from error
    if answer.headers.get("content-type") != CONTENT:
        return Message(_error(answer.content), reply_to=message)
    content = from_bytes(answer.content)
    return Message(wrap(content) if parcel else content, reply_to=message)  # who sends one understands one


def _error(said: bytes) -> Error:
    try:
        failure = Failure.model_validate_json(said)
    except ValueError as error:
        raise PayloadError("agent's answer", f"cannot be read: {error}") from None
    return Error(code=failure.code, reason=failure.reason)
