"""Fetching from a front, over real sockets: whole or not at all, and on from where it broke off."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import ssl
import threading
from pathlib import Path

import pytest
from artefact_fronts import CONTENT, DIGEST, Cut, OneFile, Scripted, front, offer_of, partial
from secure_federation import tls_files
from slow_link import Line, SlowLink
from starlette.responses import Response

from trellis.artefacts.download import FrontClient
from trellis.artefacts.offer import NotYet
from trellis.artefacts.serving import create_artefact_app
from trellis.artefacts.store import ArtefactStore
from trellis.errors import ArtefactError, Canceled, ConfigError, Refused, Unavailable
from trellis.http.server import HttpServer
from trellis.keys.authority import create_authority, issue
from trellis.keys.principals import SERVER, device
from trellis.tier.door import Front
from trellis.tls import TlsFiles

HALF = len(CONTENT) // 2


def left(store: ArtefactStore) -> set[str]:
    return {path.name for path in store.folder.iterdir()} if store.folder.exists() else set()


async def test_an_artefact_is_offered_fetched_and_fetched_no_second_time(
    tmp_path: Path, store: ArtefactStore
) -> None:
    source = OneFile(tmp_path / "above")
    async with front(Front(create_artefact_app(source))) as client:
        offer = await asyncio.to_thread(client.offer, "digits", "onnx")
        assert offer == source.offered
        for _ in range(2):
            path = await asyncio.to_thread(client.fetch, offer, store)
            assert path.read_bytes() == CONTENT
    assert source.given == 1
    assert left(store) == {DIGEST}


async def test_a_cut_download_goes_on_where_it_was(store: ArtefactStore) -> None:
    app = Scripted(offer_of(), lambda _: Cut(CONTENT, HALF), lambda _: partial(CONTENT, HALF))
    async with front(app) as client:
        with pytest.raises(Unavailable, match=f"broke off after {HALF} of {len(CONTENT)} bytes"):
            await asyncio.to_thread(client.fetch, offer_of(), store)
        assert left(store) == {f"{DIGEST}.partial"}
        path = await asyncio.to_thread(client.fetch, offer_of(), store)
    assert path.read_bytes() == CONTENT
    assert app.ranges == [None, f"bytes={HALF}-"]
    assert left(store) == {DIGEST}


async def test_a_spoilt_beginning_costs_a_download_and_not_the_artefact(store: ArtefactStore) -> None:
    store.partial(DIGEST).write_bytes(bytes(HALF))  # a power cut may leave zeros of what was written
    app = Scripted(offer_of(), lambda asked: partial(CONTENT, HALF) if asked else Response(CONTENT))
    async with front(app) as client:
        path = await asyncio.to_thread(client.fetch, offer_of(), store)
    assert path.read_bytes() == CONTENT
    assert app.ranges == [f"bytes={HALF}-", None]


async def test_a_front_that_takes_no_range_gives_it_from_the_start(store: ArtefactStore) -> None:
    store.partial(DIGEST).write_bytes(CONTENT[:HALF])
    async with front(Scripted(offer_of(), lambda _: Response(CONTENT))) as client:
        path = await asyncio.to_thread(client.fetch, offer_of(), store)
    assert path.read_bytes() == CONTENT


LIES = {
    "other bytes": (lambda _: Response(bytes(len(CONTENT))), "SHA-256"),
    "fewer bytes": (lambda _: Response(CONTENT[:-1]), f"gives {len(CONTENT) - 1} bytes"),
    "more bytes": (lambda _: Response(CONTENT + b"."), f"gives {len(CONTENT) + 1} bytes"),
}


@pytest.mark.parametrize("lie", LIES)
async def test_a_lying_front_is_refused_and_nothing_of_it_left(store: ArtefactStore, lie: str) -> None:
    answer, problem = LIES[lie]
    async with front(Scripted(offer_of(), answer)) as client:
        with pytest.raises(ArtefactError, match=problem):
            await asyncio.to_thread(client.fetch, offer_of(), store)
    assert left(store) == set()


async def test_a_range_that_was_not_asked_for_is_refused(store: ArtefactStore) -> None:
    store.partial(DIGEST).write_bytes(CONTENT[:HALF])
    async with front(Scripted(offer_of(), lambda _: partial(CONTENT, HALF + 1))) as client:
        with pytest.raises(ArtefactError, match=f"bytes {HALF} to {len(CONTENT) - 1}"):
            await asyncio.to_thread(client.fetch, offer_of(), store)
    assert left(store) == set()


async def test_an_endless_body_is_cut_off_at_the_size_that_was_offered(store: ArtefactStore) -> None:
    class Endless(Response):
        async def __call__(self, scope: object, receive: object, send: object) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})  # type: ignore[operator]
            for _ in range(50):
                body = {"type": "http.response.body", "body": CONTENT, "more_body": True}
                await send(body)  # type: ignore[operator]

    async with front(Scripted(offer_of(), lambda _: Endless())) as client:
        with pytest.raises(ArtefactError, match="it offered"):
            await asyncio.wait_for(asyncio.to_thread(client.fetch, offer_of(), store), 60)
    assert left(store) == set()


async def test_what_is_too_large_is_not_begun(tmp_path: Path) -> None:
    store = ArtefactStore(tmp_path / "cache", limit=1000)
    huge = offer_of().model_copy(update={"size": 3 * 1024**3})
    app = Scripted(huge, lambda _: Response(CONTENT))
    async with front(app) as client:
        offer = await asyncio.to_thread(client.offer, "digits", "onnx")
        with pytest.raises(ArtefactError, match="has 3221225472 bytes, at most 1000"):
            await asyncio.to_thread(client.fetch, offer, store)
    assert app.ranges == []
    assert left(store) == set()


async def test_what_a_front_says_comes_back_as_the_error_it_is(tmp_path: Path) -> None:
    source = OneFile(tmp_path / "above")
    async with front(Front(create_artefact_app(source))) as client:
        source.failure = NotYet("the server is exporting", again_s=3.0)
        with pytest.raises(NotYet, match="is exporting") as not_yet:
            await asyncio.to_thread(client.offer, "digits", "onnx")
        assert not_yet.value.again_s == 3.0
        source.failure = Unavailable("the front above does not answer")
        with pytest.raises(Unavailable, match="does not answer") as away:
            await asyncio.to_thread(client.offer, "digits", "onnx")
        assert not isinstance(away.value, NotYet)
        source.failure = Refused("export", "no operator for that")
        with pytest.raises(Refused, match="no operator") as refused:
            await asyncio.to_thread(client.offer, "digits", "onnx")
        assert refused.value.code == "export"
        with pytest.raises(Refused, match="trains from no artefact") as unknown:
            await asyncio.to_thread(client.offer, "digits", "torch")
        assert unknown.value.code == "unknown"


async def test_an_offer_for_another_runtime_is_refused() -> None:
    async def says_tflite(scope: object, receive: object, send: object) -> None:
        await Response(offer_of(runtime="tflite").to_json())(scope, receive, send)  # type: ignore[arg-type]

    async with front(says_tflite) as client:
        with pytest.raises(ArtefactError, match="is for 'tflite', 'onnx' is due"):
            await asyncio.to_thread(client.offer, "digits", "onnx")


async def test_a_front_of_an_earlier_release_or_a_strangers_is_asked_again() -> None:
    async def not_found(scope: object, receive: object, send: object) -> None:
        await Response("Not Found", status_code=404)(scope, receive, send)  # type: ignore[arg-type]

    async with front(not_found) as client:
        with pytest.raises(Unavailable, match="HTTP 404"):
            await asyncio.to_thread(client.offer, "digits", "onnx")


async def test_nobody_at_the_port_is_unavailable() -> None:
    client = FrontClient("127.0.0.1:1", tls=None)
    with pytest.raises(Unavailable, match=r"127.0.0.1:1 does not give"):
        await asyncio.to_thread(client.offer, "digits", "onnx")


def test_beyond_this_machine_nothing_is_asked_in_the_clear() -> None:
    with pytest.raises(ConfigError, match="beyond this machine"):
        FrontClient("10.0.0.5:8000", tls=None)


async def test_both_ends_show_a_certificate_of_the_fleet(
    tmp_path: Path, store: ArtefactStore, caplog: pytest.LogCaptureFixture
) -> None:
    keys, strangers = tmp_path / "keys", tmp_path / "strangers"
    for folder in (keys, strangers):
        create_authority(folder)
    issue(keys, SERVER)
    ours, others = (tls_files(issue(folder, device("eu-1", "cam-7"))) for folder in (keys, strangers))
    app = Front(create_artefact_app(OneFile(tmp_path / "above")))
    server = HttpServer(app, host="127.0.0.1", port=0, tls=tls_files(keys / SERVER.folder))
    async with server:
        address = f"localhost:{server.port}"
        with caplog.at_level(logging.INFO, "trellis.artefacts"):
            path = await asyncio.to_thread(FrontClient(address, tls=ours).fetch, offer_of(), store)
        assert path.read_bytes() == CONTENT
        assert f"artefact {DIGEST}: all to eu-1/devices/cam-7" in caplog.text
        stranger = TlsFiles(ca=ours.ca, cert=others.cert, key=others.key)
        with pytest.raises(Unavailable, match="as it does where its CA has not signed our certificate"):
            await asyncio.to_thread(FrontClient(address, tls=stranger).offer, "digits", "onnx")
        for tls in (others, None):
            with pytest.raises(Unavailable):
                await asyncio.to_thread(FrontClient(address, tls=tls).offer, "digits", "onnx")


async def test_a_front_that_ends_before_it_answers_is_not_taken_for_a_stranger(tmp_path: Path) -> None:
    create_authority(tmp_path)
    files = tls_files(issue(tmp_path, SERVER))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.cert, files.key)

    async def end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.transport.abort()

    server = await asyncio.start_server(end, "127.0.0.1", 0, ssl=context)
    async with server:
        client = FrontClient(f"localhost:{server.sockets[0].getsockname()[1]}", tls=files)
        with pytest.raises(Unavailable) as caught:
            await asyncio.to_thread(client.offer, "digits", "onnx")
    cause = r"\((Remote end closed connection without response|.*reset by peer)\)"
    due = f"without an answer {cause}, as .* or where it was ended or started again just then$"
    assert re.search(due, str(caught.value))


async def test_over_a_link_that_is_cut_again_and_again_nothing_comes_twice(store: ArtefactStore) -> None:
    content = os.urandom(3_000_000)
    offer = offer_of(content)

    def answer(asked: str | None) -> Response:
        return partial(content, int(asked[6:-1])) if asked else Response(content)

    app = Scripted(offer, answer)
    line = Line(latency_s=0.0, bits_per_s=12_000_000, lives_s=0.1, least_s=1.0)
    async with HttpServer(app, host="127.0.0.1", port=0, tls=None) as server:
        async with SlowLink(0, server.port, line) as link:
            client = FrontClient(f"127.0.0.1:{link.port}", tls=None)
            async with asyncio.timeout(60):
                while store.find(offer.sha256) is None:
                    with contextlib.suppress(Unavailable):
                        await asyncio.to_thread(client.fetch, offer, store)
        assert link.cuts >= 2
        # Each cut costs what was on its way: more where the reader is slow.
        assert link.carried["down"] < len(content) + 500_000 * link.cuts
    begun = [int(asked[6:-1]) if asked else 0 for asked in app.ranges]
    assert begun == sorted(begun)
    path = store.find(offer.sha256)
    assert path is not None
    assert path.read_bytes() == content


async def test_a_download_stops_when_it_is_called_off(store: ArtefactStore) -> None:
    async with front(Scripted(offer_of(), lambda _: Response(CONTENT))) as client:
        with pytest.raises(Canceled):
            await asyncio.to_thread(client.fetch, offer_of(), store, should_stop=lambda: True)


async def test_a_front_that_keeps_silent_is_left_at_once() -> None:
    asked, over = threading.Event(), asyncio.Event()

    async def silent(scope: object, receive: object, send: object) -> None:
        asked.set()
        await over.wait()

    async with front(silent) as client:
        asking = asyncio.create_task(asyncio.to_thread(client.offer, "digits", "onnx"))
        assert await asyncio.to_thread(asked.wait, 30)
        client.abort()
        with pytest.raises(Canceled):
            await asyncio.wait_for(asking, 10)  # by itself it waits for 15 s
        over.set()
