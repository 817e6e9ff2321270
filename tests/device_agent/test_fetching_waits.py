"""How long a device waits between its questions for an artefact, whom it asks next, and what it tells."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from artefact_fronts import CONTENT, DIGEST, Cut, OneFile, Scripted, offer_of
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from device_agent.fetching import Fetcher
from trellis.artefacts.offer import NotYet
from trellis.artefacts.serving import create_artefact_app
from trellis.artefacts.store import ArtefactStore
from trellis.errors import ArtefactError, Canceled, Refused
from trellis.flower.link_loop import Halt
from trellis.http.server import HttpServer
from trellis.payloads import Reason
from trellis.tier.door import Front


class Noted(Halt):
    """Waits for nothing, notes for how long it was to, and is called in the last of so many waits."""

    def __init__(self, tries: int) -> None:
        super().__init__()
        self.waits: list[float] = []
        self._tries = tries

    def wait_called(self, timeout_s: float) -> None:
        self.waits.append(timeout_s)
        if len(self.waits) == self._tries:
            self.call(task_ended=True)


class Asking:
    """A device's fetcher, and what it told."""

    def __init__(self, folder: Path, tries: int) -> None:
        self.halt, self.told, self.store = Noted(tries), list[Reason | None](), ArtefactStore(folder)
        self._fetcher = Fetcher(self.store, tls=None, halt=self.halt, tell=self.told.append)

    async def fetch(self, *fronts: str) -> Path:
        return await asyncio.to_thread(self._fetcher.fetch, "blobs", "onnx", fronts)

    async def in_vain(self, *fronts: str) -> None:
        with pytest.raises(Canceled, match="task 'blobs' has ended before what it trains from was here"):
            await self.fetch(*fronts)


@asynccontextmanager
async def front(app: ASGIApp) -> AsyncIterator[str]:
    async with HttpServer(app, host="127.0.0.1", port=0, tls=None) as server:
        yield f"127.0.0.1:{server.port}"


async def test_the_waits_for_a_front_that_is_away_grow_to_half_a_minute(tmp_path: Path) -> None:
    asking = Asking(tmp_path / "cache", tries=16)
    await asking.in_vain("127.0.0.1:1")
    waits = asking.halt.waits
    assert all(0.25 <= wait <= min(30, 0.5 * 2**tried) for tried, wait in enumerate(waits))
    assert max(waits) > 3  # of ten that are drawn from up to 30
    assert len(set(waits)) == 16
    assert [reason and reason.code for reason in asking.told] == [None, "unavailable"], "it is said once"


async def test_whoever_is_told_when_to_come_again_comes_spread_after_that(tmp_path: Path) -> None:
    source = OneFile(tmp_path / "above")
    source.failure = NotYet("the server is exporting tiny", again_s=4.0)
    asking = Asking(tmp_path / "cache", tries=8)
    async with front(Front(create_artefact_app(source))) as server:
        await asking.in_vain(server)
    assert all(4 <= wait <= 8 for wait in asking.halt.waits)
    assert len(set(asking.halt.waits)) == 8
    assert asking.told == [None, Reason(code="artefact", message="the server is exporting tiny")]


async def test_a_task_that_a_server_does_not_know_yet_is_asked_for_again(tmp_path: Path) -> None:
    source = OneFile(tmp_path / "above")
    source.failure = Refused("unknown", "there is no task 'blobs'")
    asking = Asking(tmp_path / "cache", tries=3)
    async with front(Front(create_artefact_app(source))) as server:
        await asking.in_vain(server)
    assert source.asked == 3
    assert asking.halt.waits[0] <= 0.5
    assert asking.halt.waits[2] <= 2.0
    assert asking.told == [None, Reason(code="unknown", message="there is no task 'blobs'")]


async def test_who_answers_at_all_makes_the_waits_short_again(tmp_path: Path) -> None:
    not_yet = Response(json.dumps({"error": {"code": "not-yet", "message": "soon"}}), status_code=503)
    answers = [Response(status_code=503)] * 8 + [not_yet] + [Response(status_code=503)] * 2

    async def scripted(scope: Scope, receive: Receive, send: Send) -> None:
        await answers.pop(0)(scope, receive, send)

    asking = Asking(tmp_path / "cache", tries=11)
    async with front(scripted) as server:
        await asking.in_vain(server)
    assert asking.halt.waits[9] <= 0.5
    assert asking.halt.waits[10] <= 1.0
    assert [reason and reason.code for reason in asking.told] == [
        None,
        "unavailable",
        "artefact",
        "unavailable",
    ]


async def test_a_link_that_brings_some_of_it_each_time_is_waited_for_briefly(tmp_path: Path) -> None:
    cuts = [lambda _, after=after: Cut(CONTENT, after) for after in range(1000, 9000, 1000)]
    asking = Asking(tmp_path / "cache", tries=10)
    async with front(Scripted(offer_of(), *cuts, lambda _: Response(CONTENT))) as server:
        assert (await asking.fetch(server)).read_bytes() == CONTENT
    assert len(asking.halt.waits) == 8
    assert max(asking.halt.waits) <= 0.5


@pytest.mark.parametrize(
    "failure", [NotYet("the server is exporting tiny"), Refused("export", "no operator")]
)
async def test_what_a_cache_has_from_above_is_not_asked_of_the_server(
    tmp_path: Path, failure: Exception
) -> None:
    cache, source = OneFile(tmp_path / "region"), OneFile(tmp_path / "above")
    cache.failure = failure
    asking = Asking(tmp_path / "cache", tries=1)
    async with (
        front(Front(create_artefact_app(cache))) as first,
        front(Front(create_artefact_app(source))) as server,
    ):
        with pytest.raises((Canceled, Refused)):
            await asking.fetch(first, server)
    assert (cache.asked, source.asked) == (1, 0)


async def test_a_task_that_a_cache_does_not_know_is_asked_of_the_server(tmp_path: Path) -> None:
    cache, source = OneFile(tmp_path / "region"), OneFile(tmp_path / "above")
    cache.failure = Refused("unknown", "it was not posted here")
    asking = Asking(tmp_path / "cache", tries=1)
    async with (
        front(Front(create_artefact_app(cache))) as first,
        front(Front(create_artefact_app(source))) as server,
    ):
        assert (await asking.fetch(first, server)).name == DIGEST


async def test_the_last_fronts_lie_is_final(tmp_path: Path) -> None:
    asking = Asking(tmp_path / "cache", tries=1)
    async with front(Scripted(offer_of(), lambda _: Response(bytes(len(CONTENT))))) as server:
        with pytest.raises(ArtefactError, match="SHA-256"):
            await asking.fetch("127.0.0.1:1", server)
    assert asking.halt.waits == []


async def test_a_task_that_has_ended_is_not_asked_for(tmp_path: Path) -> None:
    source = OneFile(tmp_path / "above")
    asking = Asking(tmp_path / "cache", tries=1)
    asking.halt.call(task_ended=True)
    async with front(Front(create_artefact_app(source))) as server:
        await asking.in_vain(server)
    assert source.asked == 0


async def test_a_task_that_ends_while_its_file_comes_down_stops_that(tmp_path: Path) -> None:
    asking = Asking(tmp_path / "cache", tries=1)

    def answer(_: str | None) -> Response:
        asking.halt.call(task_ended=True)
        return Response(CONTENT)

    async with front(Scripted(offer_of(), answer)) as server:
        with pytest.raises(Canceled, match="the download was called off"):
            await asking.fetch(server)
    assert asking.store.find(DIGEST) is None


async def test_what_was_left_of_others_long_ago_is_tidied_away(tmp_path: Path) -> None:
    asking = Asking(tmp_path / "cache", tries=1)
    old = asking.store.partial("0" * 64)
    old.write_bytes(b"half")
    os.utime(old, (1, 1))
    async with front(Front(create_artefact_app(OneFile(tmp_path / "above")))) as server:
        await asking.fetch(server)
    assert [path.name for path in asking.store.folder.iterdir()] == [DIGEST]
