"""A ClientApp's message to the agent and back, over the desk's real port."""

from __future__ import annotations

import asyncio
import runpy
import time
import tomllib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pytest
import pytest_asyncio
from flwr.app import ConfigRecord, Context, Error, Message, Metadata, MetricRecord, RecordDict

from trellis.errors import ConfigError, Unavailable
from trellis.flower import handover
from trellis.flower.backchannel import TOKEN_VARIABLE, URL_VARIABLE
from trellis.flower.front import FleetFront
from trellis.flower.handover_desk import HandoverDesk
from trellis.flower.parcels import is_parcel, unwrap, wrap
from trellis.http.server import HttpServer
from trellis.tensors import pack_arrays

ROOT = Path(__file__).parents[3]
ANSWER = RecordDict({"metrics": MetricRecord({"num-examples": 3}), "config": ConfigRecord({"task": "t"})})


@dataclass
class Desk:
    desk: HandoverDesk
    url: str

    async def hand_over(self, message: Message) -> Message:
        """Hand over as Flower's process does: through the app."""
        context = Context(7, 5, {}, RecordDict(), {})
        return await asyncio.to_thread(handover.app, message, context)

    async def take(self) -> Message:
        """Return what was handed over, as the agent sees it."""
        question = await asyncio.to_thread(self.desk.questions.get, timeout=30)
        return question.message

    def settle(self, reply: Message) -> None:
        (question,) = self.desk._unsettled
        question.settle(reply)


@pytest_asyncio.fixture
async def desk(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Desk]:
    front = FleetFront("127.0.0.1:1")
    desk = HandoverDesk(front, "secret")
    async with HttpServer(desk, host="127.0.0.1", port=0, tls=None) as server:
        monkeypatch.setenv(URL_VARIABLE, server.url)
        monkeypatch.setenv(TOKEN_VARIABLE, "secret")
        yield Desk(desk, server.url)
    await front.aclose()


def message(content: RecordDict, kind: str = "train") -> Message:
    return Message(content=content, metadata=Metadata(7, "m1", 1, 5, "", "", time.time(), 60.0, kind))


@pytest.mark.parametrize("kind", ["query", "train", "evaluate"])
async def test_the_agent_sees_the_message_and_the_server_its_reply(desk: Desk, kind: str) -> None:
    content = RecordDict({"arrays": pack_arrays({"w": np.ones(4, np.float32)}), "config": ConfigRecord({})})
    asking = asyncio.create_task(desk.hand_over(message(content, kind)))
    seen = await desk.take()
    assert seen.content == content
    assert (seen.metadata.message_id, seen.metadata.run_id) == ("m1", 7)
    assert seen.metadata.message_type == kind
    desk.settle(Message(ANSWER, reply_to=seen))
    reply = await asking
    assert reply.content == ANSWER
    assert (reply.metadata.reply_to_message_id, reply.metadata.dst_node_id) == ("m1", 1)


async def test_a_parcel_is_answered_by_a_parcel(desk: Desk) -> None:
    asking = asyncio.create_task(desk.hand_over(message(wrap(ANSWER))))
    seen = await desk.take()
    assert seen.content == ANSWER, "the agent knows no parcels"
    desk.settle(Message(ANSWER, reply_to=seen))
    reply = await asking
    assert is_parcel(reply.content)
    assert unwrap(reply.content) == ANSWER


async def test_an_error_stays_an_error(desk: Desk) -> None:
    asking = asyncio.create_task(desk.hand_over(message(ANSWER)))
    desk_message = await desk.take()
    desk.settle(Message(Error(101, "not my task"), reply_to=desk_message))
    reply = await asking
    assert (reply.error.code, reply.error.reason) == (101, "not my task")


async def test_whoever_lacks_the_token_is_refused(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, "guessed")
    with pytest.raises(Unavailable, match=r"agent does not answer: .*401"):
        await desk.hand_over(message(ANSWER))
    async with httpx.AsyncClient(trust_env=False) as stranger:
        answer = await stranger.post(f"{desk.url}/message?message_id=m&run_id=1&kind=train", content=b"")
    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "token")
    assert desk.desk.questions.empty()


async def test_an_agent_that_ends_lets_the_app_go(desk: Desk) -> None:
    asking = asyncio.create_task(desk.hand_over(message(ANSWER)))
    await desk.take()
    desk.desk.release()
    with pytest.raises(Unavailable):
        await asking


async def test_without_an_agent_the_app_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(URL_VARIABLE, raising=False)
    with pytest.raises(ConfigError, match="trellis device --link supernode"):
        await asyncio.to_thread(handover.hand_over, message(ANSWER))


@pytest.mark.parametrize("folder", ["central_server/flower_app", "regional_gateway/flower_app"])
def test_the_clientapp_of_each_fab_hands_over(folder: str) -> None:
    components = tomllib.loads((ROOT / folder / "pyproject.toml").read_text())["tool"]["flwr"]["app"]
    module, _, attribute = components["components"]["clientapp"].partition(":")
    found = runpy.run_path(str(ROOT / folder / f"{module.replace('.', '/')}.py"))
    assert found[attribute] is handover.app


async def test_a_call_to_the_server_is_seen_and_passed_on(desk: Desk) -> None:
    before, heard_at = desk.desk.asks, desk.desk.heard_at
    async with httpx.AsyncClient(trust_env=False) as supernode:
        beat = await supernode.post(f"{desk.url}/v1/fleet/send-node-heartbeat", content=b"")
        assert not desk.desk.wait_ask(before, 0.0)
        await supernode.post(f"{desk.url}/v1/fleet/pull-messages", content=b"")
        elsewhere = await supernode.post(f"{desk.url}/v1/control/start-run", content=b"")
    assert desk.desk.wait_ask(before, 0.0)
    assert desk.desk.heard_at > heard_at
    assert (beat.status_code, elsewhere.status_code) == (503, 404)  # nobody is at 127.0.0.1:1
