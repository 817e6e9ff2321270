"""What a front may say and send to whoever fetches from it, and what a disk may refuse."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable

import pytest
from artefact_fronts import CONTENT, DIGEST, Scripted, front, offer_of, partial, said
from starlette.responses import Response

from trellis.artefacts.download import FrontClient
from trellis.artefacts.offer import NotYet, Offer
from trellis.artefacts.store import ArtefactStore
from trellis.errors import ArtefactError, Canceled, DiskFailed, TrellisError, Unavailable

HALF, SIZE = len(CONTENT) // 2, len(CONTENT)


def left(store: ArtefactStore) -> set[str]:
    return {path.name for path in store.folder.iterdir()}


@pytest.mark.parametrize(
    ("retry_after", "due_s"),
    [
        ("7", 7.0),
        ("0", 0.5),
        ("-3", 0.5),
        ("1e9", 30.0),
        ("inf", 30.0),
        ("nan", 2.0),
        ("Sun, 22 Nov 2026", 2.0),
        (None, 2.0),
    ],
)
async def test_who_is_to_come_again_does_so_within_half_a_minute(
    retry_after: str | None, due_s: float
) -> None:
    body = json.dumps({"error": {"code": "not-yet", "message": "is being made"}})
    headers = {} if retry_after is None else {"retry-after": retry_after}
    async with front(Response(body, status_code=503, headers=headers)) as client:
        with pytest.raises(NotYet, match="is being made") as told:
            await asyncio.to_thread(client.offer, "digits", "onnx")
    assert told.value.again_s == due_s


async def test_an_offer_of_any_length_is_not_read_to_its_end() -> None:
    offer = {**said(offer_of()), "note": "x" * 65_000}
    async with front(Response(json.dumps(offer))) as client:
        assert await asyncio.to_thread(client.offer, "digits", "onnx") == offer_of()
    offer["note"] = "x" * 66_000
    async with front(Response(json.dumps(offer))) as client:
        with pytest.raises(ArtefactError, match=rf"^offer of an artefact by {client.address}: "):
            await asyncio.to_thread(client.offer, "digits", "onnx")


async def test_what_came_whole_is_not_asked_for_again(store: ArtefactStore) -> None:
    store.partial(DIGEST).write_bytes(CONTENT)
    app = Scripted(offer_of(), lambda _: Response(CONTENT))
    async with front(app) as client:
        assert (await asyncio.to_thread(client.fetch, offer_of(), store)).read_bytes() == CONTENT
    assert app.ranges == []


async def test_more_than_was_offered_is_no_beginning(store: ArtefactStore) -> None:
    store.partial(DIGEST).write_bytes(CONTENT + b".")
    app = Scripted(offer_of(), lambda _: Response(CONTENT))
    async with front(app) as client:
        assert (await asyncio.to_thread(client.fetch, offer_of(), store)).read_bytes() == CONTENT
    assert app.ranges == [None]


def _of_another_length(_: str | None) -> Response:
    return partial(CONTENT, HALF, total=SIZE + 1)


def _of_another_total(_: str | None) -> Response:
    answer = partial(CONTENT, HALF)
    answer.headers["content-range"] = f"bytes {HALF}-{SIZE - 1}/{SIZE + 1}"
    return answer


def _unsaid(_: str | None) -> Response:
    return Response(CONTENT[HALF:], status_code=206)


def _less(_: str | None) -> Response:
    return Response(status_code=416)


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (_of_another_length, f"gives 'bytes {HALF}-{SIZE}/{SIZE + 1}', bytes {HALF} to {SIZE - 1} of {SIZE}"),
        (
            _of_another_total,
            f"gives 'bytes {HALF}-{SIZE - 1}/{SIZE + 1}', bytes {HALF} to {SIZE - 1} of {SIZE}",
        ),
        (_unsaid, f"gives '', bytes {HALF} to {SIZE - 1} of {SIZE} are due"),
        (_less, r"127\.0\.0\.1:\d+ has less of it than it offered"),
    ],
)
async def test_the_rest_of_something_else_is_refused(
    store: ArtefactStore, answer: Callable[[str | None], Response], problem: str
) -> None:
    store.partial(DIGEST).write_bytes(CONTENT[:HALF])
    async with front(Scripted(offer_of(), answer)) as client:
        with pytest.raises(ArtefactError, match=problem):
            await asyncio.to_thread(client.fetch, offer_of(), store)
    assert left(store) == set()


async def test_a_part_that_nobody_asked_for_is_refused(store: ArtefactStore) -> None:
    async with front(Scripted(offer_of(), lambda _: partial(CONTENT, HALF))) as client:
        with pytest.raises(ArtefactError, match=f"bytes 0 to {SIZE - 1} of {SIZE} are due"):
            await asyncio.to_thread(client.fetch, offer_of(), store)


@pytest.mark.parametrize("content", [CONTENT, b"less than is written at one time"])
async def test_a_full_disk_is_said_to_be_one(store: ArtefactStore, content: bytes) -> None:
    offer = offer_of(content)
    store.partial(offer.sha256).symlink_to("/dev/full")
    async with front(Scripted(offer, lambda _: Response(content))) as client:
        with pytest.raises(DiskFailed, match=r"partial cannot be written: No space left on device; free"):
            await asyncio.to_thread(client.fetch, offer, store)


async def test_a_disk_that_takes_no_file_is_said_to_be_one(store: ArtefactStore) -> None:
    store.partial(DIGEST).symlink_to(store.folder)
    async with front(Scripted(offer_of(), lambda _: Response(CONTENT))) as client:
        with pytest.raises(DiskFailed, match=r"partial cannot be written: Is a directory; free"):
            await asyncio.to_thread(client.fetch, offer_of(), store)


async def test_whoever_was_left_is_asked_no_more() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        client = FrontClient(f"127.0.0.1:{listening.getsockname()[1]}", tls=None)
        client.abort()
        with pytest.raises(Canceled, match=f"{client.address} is asked no more"):
            await asyncio.to_thread(client.offer, "digits", "onnx")
        listening.setblocking(False)
        with pytest.raises(BlockingIOError):
            listening.accept()


@pytest.mark.parametrize("address", ["[::1]:1", "localhost:1", "127.0.0.1:1"])
async def test_this_machine_may_be_asked_in_the_clear_by_any_of_its_names(address: str) -> None:
    with pytest.raises(Unavailable) as away:
        await asyncio.to_thread(FrontClient(address, tls=None).offer, "digits", "onnx")
    assert str(away.value).startswith(f"{address} does not give an artefact: [Errno ")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"bytes": 0}, "bytes"),
        ({"sha256": DIGEST[:-1]}, "sha256"),
        ({"sha256": DIGEST.upper()}, "sha256"),
        ({"sha256": DIGEST + "\n"}, "sha256"),
        ({"runtime": None}, "runtime"),
    ],
)
def test_an_offer_that_is_none_is_named_with_its_field(change: dict[str, object], field: str) -> None:
    text = json.dumps({**said(offer_of()), **change, "unknown": 1}).encode()
    with pytest.raises(ArtefactError, match=rf"^offer of an artefact by gw:1: {field}: "):
        Offer.parse(text, where="gw:1")


def test_an_offer_says_what_is_to_be_done_where_it_is_too_large() -> None:
    offer = offer_of(b"four")
    offer.require_size(4)
    with pytest.raises(ArtefactError, match=r"…: has 4 bytes, at most 3 are taken here$"):
        offer.require_size(3)
    with pytest.raises(TrellisError, match=r"at most 3 are taken here: take more$"):
        offer.require_size(3, remedy="take more")
