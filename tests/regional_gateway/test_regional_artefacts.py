"""A gateway's cache: once per region from the front above, whoever asks and however often."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from artefact_fronts import CONTENT, DIGEST, Cut, OneFile, Scripted, offer_of, partial
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from regional_gateway import artefacts
from regional_gateway.artefacts import RegionalArtefacts
from regional_gateway.ledger import Ledger
from regional_gateway.place import Place
from trellis.artefacts import store
from trellis.artefacts.offer import MOST_BYTES, NotYet, Offer
from trellis.artefacts.serving import create_artefact_app
from trellis.errors import Refused, Unavailable
from trellis.http.server import HttpServer

TASK = "digits"
HALF = len(CONTENT) // 2


@pytest.fixture(autouse=True)
def held(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is known stays so, however slow the machine is."""
    monkeypatch.setattr(artefacts, "HOLDS_S", 600.0)


class Posted:
    """What is asked of a ledger: one task, of a descriptor that nobody looks at but for its server."""

    def __init__(self, address: str) -> None:
        server = SimpleNamespace(address=address)
        self.record = SimpleNamespace(
            cleared=False, descriptor=SimpleNamespace(revision=1, server=server, regions=("eu-1",))
        )

    def get(self, task: str) -> Any:
        return self.record if task == TASK else None


@asynccontextmanager
async def below(app: ASGIApp, folder: Path) -> AsyncIterator[RegionalArtefacts]:
    async with (
        HttpServer(app, host="127.0.0.1", port=0, tls=None) as above,
        RegionalArtefacts(folder, None) as cache,
    ):
        cache.load(cast(Ledger, Posted(f"127.0.0.1:{above.port}")), Place("eu-1"))
        yield cache


async def offered(cache: RegionalArtefacts) -> Offer:
    async with asyncio.timeout(60):
        while True:
            try:
                return await cache.offer(TASK, "onnx")
            except NotYet:
                await asyncio.sleep(0.02)


def under_way() -> list[str]:
    names = (task.get_name() for task in asyncio.all_tasks())
    return [name for name in names if name.startswith(("offer of ", "artefact "))]


async def test_it_comes_once_for_all_who_ask_at_one_time(tmp_path: Path) -> None:
    source = OneFile(tmp_path / "above")
    async with below(create_artefact_app(source), tmp_path / "cache") as cache:
        offers = await asyncio.gather(*(offered(cache) for _ in range(8)))
        assert set(offers) == {source.offered}
        path = cache.file(DIGEST)
        assert path is not None
        assert path.read_bytes() == CONTENT
    assert (source.given, source.asked) == (1, 1)
    async with below(create_artefact_app(source), tmp_path / "cache") as cache:
        assert await cache.offer(TASK, "onnx") == source.offered  # it is on the disk
    assert source.given == 1


async def test_what_is_here_is_read_once_however_many_ask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []
    digest_of = store.digest_of
    monkeypatch.setattr(store, "digest_of", lambda path: read.append(path) or digest_of(path))
    async with below(create_artefact_app(OneFile(tmp_path / "above")), tmp_path / "cache") as cache:
        for _ in range(2):
            await asyncio.gather(*(offered(cache) for _ in range(20)))
    assert [path.name for path in read] == [f"{DIGEST}.partial"]


async def test_what_is_too_large_is_not_fetched(tmp_path: Path) -> None:
    huge = offer_of().model_copy(update={"size": 3 * 1024**3})
    app = Scripted(huge, lambda _: Response(CONTENT))
    async with below(app, tmp_path / "cache") as cache:
        with pytest.raises(Unavailable, match=f"has 3221225472 bytes, at most {MOST_BYTES} are taken here"):
            await offered(cache)
    assert app.ranges == []
    assert not (tmp_path / "cache").exists()


async def test_what_comes_at_once_is_offered_to_who_asks_first(tmp_path: Path) -> None:
    source = OneFile(tmp_path / "above")
    async with below(create_artefact_app(source), tmp_path / "cache") as cache:
        assert await cache.offer(TASK, "onnx") == source.offered


async def test_a_file_that_the_disk_has_spoilt_comes_down_anew(tmp_path: Path) -> None:
    source = OneFile(tmp_path / "above")
    async with below(create_artefact_app(source), tmp_path / "cache") as cache:
        await offered(cache)
        (tmp_path / "cache" / DIGEST).write_bytes(bytes(len(CONTENT)))
        await offered(cache)
        path = cache.file(DIGEST)
        assert path is not None
        assert path.read_bytes() == CONTENT
    assert source.given == 2


async def test_a_cut_is_mended_without_a_device_that_asks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(artefacts, "_FETCH_AGAIN_S", (0.05, 0.05))
    monkeypatch.setattr(artefacts, "SOON_S", 0.0)
    asked, rest = asyncio.Event(), partial(CONTENT, HALF)

    async def once_it_was_asked_for(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.wait_for(asked.wait(), 60)
        await rest(scope, receive, send)

    second = cast(Response, once_it_was_asked_for)
    app = Scripted(offer_of(), lambda _: Cut(CONTENT, HALF), lambda _: second)
    async with below(app, tmp_path / "cache") as cache:
        with pytest.raises(NotYet, match=f"fetching softmax for onnx, {len(CONTENT)} bytes"):
            await cache.offer(TASK, "onnx")
        asked.set()
        async with asyncio.timeout(60):
            while cache.file(DIGEST) is None:  # noqa: ASYNC110 - a thread writes it
                await asyncio.sleep(0.02)
    assert app.ranges == [None, f"bytes={HALF}-"]


async def test_a_lying_front_above_is_told_and_nothing_of_it_kept(tmp_path: Path) -> None:
    app = Scripted(offer_of(), lambda _: Response(bytes(len(CONTENT))))
    async with below(app, tmp_path / "cache") as cache:
        with pytest.raises(Unavailable, match=r"'eu-1' has no artefact of softmax.*SHA-256"):
            await offered(cache)  # a device may ask the server itself
        assert cache.file(DIGEST) is None
    assert list((tmp_path / "cache").iterdir()) == []
    assert len(app.ranges) == 1


async def test_what_does_not_come_down_is_not_promised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(artefacts, "_FETCH_AGAIN_S", (0.05, 0.05))
    app = Scripted(offer_of(), lambda _: Cut(CONTENT, 0))
    async with below(app, tmp_path / "cache") as cache:
        with pytest.raises(
            Unavailable, match=r"'eu-1' has no artefact of softmax.*(does not give|broke off)"
        ):
            await offered(cache)
        assert len(app.ranges) == 3


async def test_a_device_that_hangs_up_does_not_end_the_question_of_the_others(tmp_path: Path) -> None:
    class Slow(OneFile):
        """Takes its time to offer."""

        def __init__(self, folder: Path) -> None:
            super().__init__(folder)
            self.ready = asyncio.Event()

        async def offer(self, task: str, runtime: str) -> Offer:
            await asyncio.wait_for(self.ready.wait(), 60)
            return await super().offer(task, runtime)

    source = Slow(tmp_path / "above")
    async with below(create_artefact_app(source), tmp_path / "cache") as cache:
        first, second = (asyncio.create_task(offered(cache)) for _ in range(2))
        while not under_way():  # noqa: ASYNC110 - of the question there is no event
            await asyncio.sleep(0)
        first.cancel()
        await asyncio.wait([first])
        source.ready.set()
        assert await second == source.offered
    assert (first.cancelled(), source.asked) == (True, 1)


async def test_what_did_not_come_down_is_had_again_after_a_while_and_not_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(artefacts, "_FETCH_AGAIN_S", ())
    app = Scripted(offer_of(), lambda _: Cut(CONTENT, 0), lambda _: Response(CONTENT))
    async with below(app, tmp_path / "cache") as cache:
        for _ in range(3):
            with pytest.raises(Unavailable, match="has no artefact of softmax"):
                await offered(cache)
        assert len(app.ranges) == 1
        monkeypatch.setattr(artefacts, "HOLDS_S", 0.0)
        assert await offered(cache) == offer_of()


async def test_another_revision_of_a_task_may_train_from_another_file(tmp_path: Path) -> None:
    source = OneFile(tmp_path / "above")
    async with below(create_artefact_app(source), tmp_path / "cache") as cache:
        posted = cast(Posted, cache._ledger)
        await offered(cache)
        posted.record.descriptor.revision = 2
        await offered(cache)
        assert source.asked == 2
        posted.record.cleared = True
        with pytest.raises(Refused, match=f"task '{TASK}' was not posted to the gateway") as error:
            await cache.offer(TASK, "onnx")
        assert error.value.code == "unknown"


async def test_a_gateway_without_tasks_knows_none(tmp_path: Path) -> None:
    async with RegionalArtefacts(tmp_path / "cache", None) as cache:
        with pytest.raises(Refused, match="was not posted"):
            await cache.offer(TASK, "onnx")


async def test_a_gateway_ends_at_once_between_two_tries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(artefacts, "_FETCH_AGAIN_S", (60.0,))
    app = Scripted(offer_of(), lambda _: Cut(CONTENT, 0))
    async with asyncio.timeout(40):
        async with below(app, tmp_path / "cache") as cache:
            while not app.ranges:
                with pytest.raises(NotYet):
                    await cache.offer(TASK, "onnx")
                await asyncio.sleep(0.02)
        assert under_way() == []
    assert len(app.ranges) == 1


async def test_what_was_left_of_others_long_ago_is_tidied_away(tmp_path: Path) -> None:
    old = tmp_path / "cache" / f"{DIGEST}.partial"
    old.parent.mkdir()
    old.write_bytes(b"half")
    os.utime(old, (1, 1))
    async with RegionalArtefacts(old.parent, None):
        assert not old.exists()


async def test_a_bad_offer_from_above_is_the_gateways_trouble(tmp_path: Path) -> None:
    async with below(Response("[]"), tmp_path / "cache") as cache:
        with pytest.raises(Unavailable, match="offer of an artefact by"):
            await cache.offer(TASK, "onnx")


async def test_what_the_server_says_comes_down(tmp_path: Path) -> None:
    source = OneFile(tmp_path / "above")
    async with below(create_artefact_app(source), tmp_path / "cache") as cache:
        source.failure = NotYet("the server is exporting softmax")
        with pytest.raises(NotYet, match="the server is exporting"):
            await cache.offer(TASK, "onnx")
        source.failure = Refused("export", "the server cannot export softmax: no")
        with pytest.raises(Refused, match="cannot export softmax: no"):
            await cache.offer(TASK, "onnx")
        with pytest.raises(Refused, match="was not posted to the gateway") as error:
            await cache.offer("another", "onnx")
        assert error.value.code == "unknown"


async def test_with_the_front_above_away_what_is_known_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = OneFile(tmp_path / "above")
    async with RegionalArtefacts(tmp_path / "cache", None) as cache:
        async with HttpServer(create_artefact_app(source), host="127.0.0.1", port=0, tls=None) as above:
            cache.load(cast(Ledger, Posted(f"127.0.0.1:{above.port}")), Place("eu-1"))
            first = await offered(cache)
        monkeypatch.setattr(artefacts, "HOLDS_S", 0.0)
        assert await cache.offer(TASK, "onnx") == first
        with pytest.raises(Unavailable):
            await cache.offer(TASK, "tflite")


async def test_a_gateway_ends_at_once_while_the_front_above_keeps_silent(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        async with RegionalArtefacts(tmp_path / "cache", None) as cache:
            address = f"127.0.0.1:{silent.getsockname()[1]}"
            cache.load(cast(Ledger, Posted(address)), Place("eu-1"))
            asking = asyncio.create_task(cache.offer(TASK, "onnx"))
            (connection, _) = await asyncio.to_thread(silent.accept)
            began = asyncio.get_running_loop().time()
        assert under_way() == []
        with pytest.raises(Exception, match="asked no more"):
            await asking
        assert asyncio.get_running_loop().time() - began < 12, "it would wait for 15 s"
        connection.close()
