"""FlowerLink where the way to a real SuperLink, or the machine that it runs on, has a fault."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable, MutableMapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from flower_parts import Federation, connected, pulled
from flwr.app import Message
from flwr.supercore.date import now
from flwr.supernode.fleet_http_client import FleetHttpClient
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from trellis.errors import ConfigError, Refused, Unavailable
from trellis.flower.front import FleetFront
from trellis.flower.inbox import Inbox, Letter
from trellis.flower.link import FlowerLink
from trellis.http.server import HttpServer

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(180)]


@dataclass
class Stumbling:
    """A front, or a proxy before it, that answers the next calls of some names with a status of its own.

    Attributes:
        headers: What it says besides.
        late: Whether the SuperLink has done by then what it was asked.
    """

    front: ASGIApp
    statuses: dict[str, int] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    late: bool = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        status = self.statuses.pop(scope["path"].rpartition("/")[2], None) if "path" in scope else None
        if status is None or self.late:
            await self.front(scope, receive, send if status is None else _unheard)
        if status is not None:
            await PlainTextResponse("try again", status, self.headers)(scope, receive, send)


async def _unheard(message: MutableMapping[str, Any]) -> None:
    """An answer that is lost on its way."""


@dataclass(frozen=True)
class Way:
    """A federation by a way that stumbles."""

    federation: Federation
    stumbling: Stumbling


@pytest_asyncio.fixture(loop_scope="module")
async def way(federation: Federation) -> AsyncIterator[Way]:
    stumbling = Stumbling(FleetFront(federation.superlink.address))
    async with HttpServer(stumbling, host="127.0.0.1", port=0, tls=None) as front:
        yield Way(replace(federation, front=f"127.0.0.1:{front.port}"), stumbling)


@pytest.mark.parametrize("status", [401, 403, 404, 429, 500, 502, 503, 504])
@pytest.mark.parametrize("anew", [False, True], ids=["same-process", "new-process"])
async def test_a_heartbeat_that_is_answered_by_something_on_the_way_costs_no_node_and_no_message(
    way: Way, tmp_path: Path, status: int, anew: bool
) -> None:
    link = await connected(way.federation, tmp_path)
    node_id, key = link.node_id, (tmp_path / "node.pem").read_bytes()
    sent = await way.federation.app("push", node=node_id, type="train", floats=6)
    message = await pulled(link)
    if anew:
        await asyncio.to_thread(link.close, deactivate=False)
        link = FlowerLink(way.federation.front, folder=tmp_path, tls=None)
    way.stumbling.statuses["send-node-heartbeat"] = status
    with pytest.raises((Unavailable, Refused), match=way.federation.front):
        await asyncio.to_thread(link.connect)
    assert not way.stumbling.statuses, "no heartbeat was tried"
    assert await asyncio.to_thread(link.connect) == node_id
    assert (tmp_path / "node.pem").read_bytes() == key
    assert link.in_hand == {sent["id"]}
    again = await asyncio.to_thread(link.pull)
    assert again is not None
    assert again.metadata.message_id == message.metadata.message_id == sent["id"]
    await asyncio.to_thread(link.push, Message(again.content, reply_to=again))
    reply = await way.federation.app.reply_to(sent["id"])
    assert (reply["error"], reply["sum"], reply["src"]) == (None, 6.0, node_id)
    await asyncio.to_thread(link.close, deactivate=True)


@pytest.mark.parametrize("call", ["register-node", "activate-node"])
@pytest.mark.parametrize("late", [False, True], ids=["never-came", "answer-lost"])
async def test_a_node_that_is_forgotten_comes_back_as_a_new_one_whichever_request_fails_meanwhile(
    way: Way, tmp_path: Path, call: str, late: bool
) -> None:
    # As after a start of the SuperLink anew: the key and the ID that are here it has never seen.
    (tmp_path / "node-id.json").write_text(json.dumps({"node_id": 77}))
    inbox = Inbox(tmp_path / "inbox")
    inbox.keep(Letter("ab12", 1, 77, {}))
    link = FlowerLink(way.federation.front, folder=tmp_path, tls=None)
    way.stumbling.statuses[call], way.stumbling.late = 503, late
    with pytest.raises(Unavailable, match="HTTP 503"):
        await asyncio.to_thread(link.connect)
    assert [letter.node_id for letter in inbox.letters()] == [77], "it is not known yet what became of it"
    node_id = await asyncio.to_thread(link.connect)
    assert list(inbox.letters()) == []
    sent = await way.federation.app("push", node=node_id, type="train", floats=2)
    assert (await pulled(link)).metadata.message_id == sent["id"]
    await asyncio.to_thread(link.close, deactivate=True)


@pytest.mark.parametrize(
    ("off_s", "told"),
    # What a request takes is taken off the first: 45 seconds remain before it is no clock's fault any more.
    [(50.0, r"[2345]?\d s ahead of"), (-330.0, r"5 min \d+ s behind"), (7e5, "8 d 2 h ahead of")],
)
async def test_a_clock_that_flower_does_not_take_is_told_and_once_it_is_set_all_goes_on(
    federation: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, off_s: float, told: str
) -> None:
    stranger = FlowerLink(federation.front, folder=tmp_path / "stranger", tls=None)
    link = await connected(federation, tmp_path)
    node_id = link.node_id
    sent = await federation.app("push", node=node_id, type="train", floats=8)
    message = await pulled(link)
    with monkeypatch.context() as patched:
        patched.setattr("trellis.flower.device_headers.now", lambda: now() + timedelta(seconds=off_s))
        with pytest.raises(Unavailable, match="401"):
            await asyncio.to_thread(link.push, Message(message.content, reply_to=message))
        for one in (link, stranger):
            with pytest.raises(
                Refused, match=f"{federation.front} .* this device's clock is {told}.*; set"
            ) as no:
                await asyncio.to_thread(one.connect)
            assert no.value.code == "link"
    assert await asyncio.to_thread(stranger.connect)
    assert await asyncio.to_thread(link.connect) == node_id
    await asyncio.to_thread(link.push, Message(message.content, reply_to=message))
    assert (await federation.app.reply_to(sent["id"]))["sum"] == 8.0
    for one in (link, stranger):
        await asyncio.to_thread(one.close, deactivate=True)


async def test_a_refusal_of_a_device_whose_clock_is_right_is_not_laid_on_its_clock(
    way: Way, tmp_path: Path
) -> None:
    way.stumbling.statuses["register-node"] = 401
    link = FlowerLink(way.federation.front, folder=tmp_path, tls=None)
    with pytest.raises(Refused, match=r"refuses this device: HTTP 401: try again$"):
        await asyncio.to_thread(link.connect)
    await asyncio.to_thread(link.close, deactivate=False)


async def test_a_device_is_not_sent_on_to_another_server(way: Way, tmp_path: Path) -> None:
    elsewhere = f"http://{way.federation.superlink.address}/v1/fleet/register-node"
    way.stumbling.statuses["register-node"] = 307
    way.stumbling.headers["location"] = elsewhere
    link = FlowerLink(way.federation.front, folder=tmp_path, tls=None)
    with pytest.raises(Unavailable, match="HTTP 307"):
        await asyncio.to_thread(link.connect)
    await asyncio.to_thread(link.close, deactivate=False)


def a_folder_for_the_key(folder: Path) -> Path:
    (folder / "node.pem").mkdir()
    return folder / "node.pem"


def a_file_for_the_folder(folder: Path) -> Path:
    folder.rmdir()
    folder.write_text("")
    return folder


def a_folder_for_the_id(folder: Path) -> Path:
    (folder / "node-id.json").mkdir()
    return folder / "node-id.json"


def a_folder_for_a_message(folder: Path) -> Path:
    (folder / "inbox" / "ab12.message").mkdir(parents=True)
    return folder / "inbox" / "ab12.message"


@pytest.mark.parametrize(
    "spoil",
    [
        a_folder_for_the_key,
        a_file_for_the_folder,
        a_folder_for_the_id,
        a_folder_for_a_message,
    ],
)
async def test_what_is_wrong_with_a_devices_own_folder_is_told_with_its_path_and_not_laid_on_the_server(
    federation: Federation, tmp_path: Path, spoil: Callable[[Path], Path]
) -> None:
    folder = tmp_path / "flower"
    folder.mkdir()
    wrong = spoil(folder)
    link = FlowerLink(federation.front, folder=folder, tls=None)
    with pytest.raises(ConfigError, match=re.escape(str(wrong))) as told:
        await asyncio.to_thread(link.connect)
    assert federation.front not in str(told.value)
    await asyncio.to_thread(link.close, deactivate=False)


@pytest.mark.parametrize(("kind", "due"), [("train", ["asked"]), ("evaluate", ["asked"]), ("query", [])])
async def test_whoever_is_asked_for_work_hears_so_before_the_first_object_has_come(
    federation: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, due: list[str]
) -> None:
    link = await connected(federation, tmp_path)
    sent = await federation.app("push", node=link.node_id, type=kind, floats=3)
    pull_object, heard = FleetHttpClient.PullObject, []

    def noted(self: FleetHttpClient, request: Any) -> Any:
        heard.append("object")
        return pull_object(self, request)

    monkeypatch.setattr(FleetHttpClient, "PullObject", noted)
    async with asyncio.timeout(90):
        while (message := await asyncio.to_thread(link.pull, lambda: heard.append("asked"))) is None:
            assert heard == [], "nobody has asked yet"
            await asyncio.sleep(0.02)
    assert message.metadata.message_id == sent["id"]
    assert heard[: len(due) + 1] == [*due, "object"]
    assert heard.count("asked") == len(due)
    await asyncio.to_thread(link.close, deactivate=True)
