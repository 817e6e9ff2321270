"""A device without PyTorch: it fetches what it trains from, says so, and refuses what it should not run."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial as partial_call
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
from artefact_fronts import Cut, OneFile, Scripted, offer_of, partial
from bad_artefacts import BAD, contents, honest
from graph_files import TINY
from starlette.responses import Response
from starlette.types import ASGIApp

from device_agent import fetching
from device_agent.eligibility import Believed, artefact_fronts
from device_agent.participation import Device, Ending, Participation
from device_agent.reporting import TaskReport
from device_agent.trainer import Trainer
from models.backends import open_backend
from models.exported import read_artefact
from trellis.artefacts.offer import NotYet
from trellis.artefacts.serving import create_artefact_app
from trellis.errors import Refused, Unavailable
from trellis.http.server import HttpServer
from trellis.mqtt import Bus
from trellis.mqtt.memory import MemoryBroker
from trellis.payloads import Execution, ExecutionState, Phase, Reason
from trellis.tensors import unpack_arrays
from trellis.tier.door import Front

INITIAL = {"fc.weight": np.zeros((2, 3), np.float32), "fc.bias": np.zeros(2, np.float32)}


@pytest_asyncio.fixture
async def bus() -> AsyncIterator[Bus]:
    async with MemoryBroker().bus("device") as bus:
        yield bus


class Told(TaskReport):
    """The task's report, and every execution that it has said."""

    def __init__(self, device: Device, bus: Bus) -> None:
        settings = device.settings
        where = {"region": settings.region, "device": settings.name, "task": "blobs"}
        super().__init__(bus, device.journal, settings.topics, **where)
        self.said: list[Execution] = []
        self._news = asyncio.Event()

    async def _publish(self, change: Callable[[Execution | None], Execution]) -> None:
        await super()._publish(change)
        assert self.execution is not None
        self.said.append(self.execution)
        self._news.set()

    async def until(self, holds: Callable[[Execution], bool]) -> Execution:
        async with asyncio.timeout(20):
            while not (found := [one for one in self.said if holds(one)]):
                self._news.clear()
                await self._news.wait()
        return found[0]


@asynccontextmanager
async def front(app: ASGIApp) -> AsyncIterator[str]:
    async with HttpServer(app, host="127.0.0.1", port=0, tls=None) as server:
        yield f"127.0.0.1:{server.port}"


@asynccontextmanager
async def taking_part(
    device: Device, bus: Bus, task: Any, *, cache: str
) -> AsyncIterator[tuple[Participation, asyncio.Task[Ending], Told]]:
    """The device takes part, and has `cache` on its list, which a gateway hints at."""
    device = replace(device, settings=replace(device.settings, servers=(*device.settings.servers, cache)))
    told = Told(device, bus)
    await told.queued(task.revision, samples=len(device.data), backend=device.settings.backend)
    participation = Participation(Believed(task, "d", "k", artefacts=cache), device=device, report=told)
    running = asyncio.create_task(participation.run())
    try:
        yield participation, running, told
    finally:
        running.cancel()
        await asyncio.wait([running], timeout=40)


async def ended(device: Device, bus: Bus, make: Callable[..., Any], app: ASGIApp) -> Execution:
    """Return the execution of a device whose task's server is `app`, once it has ended by itself."""
    async with front(app) as server:
        task = make(**TINY, server={"address": server, "tls": False})
        async with taking_part(device, bus, task, cache=server) as (_, running, told):
            await asyncio.wait_for(running, 60)
    assert told.execution is not None
    return told.execution


def kept(device: Device) -> set[str]:
    folder = device.settings.artefact_folder
    return {path.name for path in folder.iterdir()} if folder.exists() else set()


async def test_a_model_that_is_not_known_here_is_trained_from_its_artefact(  # noqa: PLR0917 - fixtures
    tmp_path: Path, content: bytes, tiny_device: Device, bus: Bus, make_task: Any, flower: Any
) -> None:
    source = OneFile(tmp_path / "above", content)
    async with front(Front(create_artefact_app(source))) as cache:
        for number in (1, 2):
            async with taking_part(tiny_device, bus, make_task(**TINY), cache=cache) as (_, _, told):
                message = flower.send("train", {"task": "blobs", "round": number}, INITIAL)
                reply = await asyncio.to_thread(flower.reply, message)
                assert not reply.has_error(), reply.error
                trained = unpack_arrays(reply.content["arrays"])
                assert set(trained) == set(INITIAL)
                assert np.abs(trained["fc.weight"]).max() > 0.1
                phases = list(dict.fromkeys(one.phase for one in told.said if one.phase))
                assert phases[:4] == [Phase.VERIFYING, Phase.FETCHING, Phase.CONNECTING, Phase.WAITING]
                assert {one.backend for one in told.said} == {"onnx"}
    assert source.given == 1, "the second time it was here"
    assert kept(tiny_device) == {hashlib.sha256(content).hexdigest()}


@pytest.mark.parametrize("bad", BAD)
async def test_a_bad_artefact_is_rejected_with_its_reason_and_not_kept(  # noqa: PLR0917 - fixtures
    tmp_path: Path, content: bytes, tiny_device: Device, bus: Bus, make_task: Any, bad: str
) -> None:
    before = contents(tmp_path)
    execution = await ended(tiny_device, bus, make_task, BAD[bad].front(content))
    assert execution.state is ExecutionState.REJECTED
    assert execution.reason is not None
    assert execution.reason.code == "artefact", execution.reason
    assert re.search(BAD[bad].problem, execution.reason.message), execution.reason
    after = contents(tmp_path)
    after.pop(tiny_device.settings.artefact_folder, None)
    assert after == before


async def test_a_larger_artefact_is_opened_where_the_device_may_fetch_it(
    content: bytes,
    tiny_device: Device,
    bus: Bus,
    make_task: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    less = len(content) - 1  # than the defaults would let pass, had anybody kept to them
    monkeypatch.setitem(Trainer.open.__func__.__kwdefaults__, "artefact_bytes", less)  # type: ignore[attr-defined]
    monkeypatch.setitem(open_backend.__kwdefaults__, "artefact_bytes", less)
    monkeypatch.setitem(read_artefact.__kwdefaults__, "max_bytes", less)
    async with (
        front(honest(content)) as cache,
        taking_part(tiny_device, bus, make_task(**TINY), cache=cache) as (_, _, told),
    ):
        await told.until(lambda one: one.phase is Phase.WAITING)
    assert kept(tiny_device) == {hashlib.sha256(content).hexdigest()}


async def test_what_is_larger_by_a_byte_is_rejected_and_none_of_it_fetched(
    content: bytes, tiny_device: Device, bus: Bus, make_task: Any
) -> None:
    small = replace(tiny_device.settings, artefact_bytes=len(content) - 1)
    app = Scripted(offer_of(content), lambda _: Response(content))
    execution = await ended(replace(tiny_device, settings=small), bus, make_task, app)
    assert execution.state is ExecutionState.REJECTED
    assert app.ranges == []


async def test_a_device_waits_while_it_is_made_and_says_so(
    tmp_path: Path, content: bytes, tiny_device: Device, bus: Bus, make_task: Any
) -> None:
    source = OneFile(tmp_path / "above", content)
    source.failure = NotYet("the server is exporting tiny", again_s=0.5)
    app = Front(create_artefact_app(source))
    async with front(app) as cache, taking_part(tiny_device, bus, make_task(**TINY), cache=cache) as parts:
        _, _, told = parts
        waits = await told.until(lambda one: one.reason is not None)
        assert (waits.state, waits.phase) == (ExecutionState.IN_PROGRESS, Phase.FETCHING)
        assert waits.reason == Reason(code="artefact", message="the server is exporting tiny")
        async with asyncio.timeout(20):
            while source.asked < 3:  # noqa: ASYNC110 - the front's count, and no event
                await asyncio.sleep(0.05)
        source.failure = None
        connected = await told.until(lambda one: one.phase is Phase.WAITING)
        assert connected.reason is None
    assert len([one for one in told.said if one.reason is not None]) == 1, "it is said once"


async def test_a_task_that_is_called_off_is_waited_for_no_longer(
    tmp_path: Path, tiny_device: Device, bus: Bus, make_task: Any
) -> None:
    source = OneFile(tmp_path / "above")
    source.failure = NotYet("the server is exporting tiny", again_s=30.0)
    app = Front(create_artefact_app(source))
    async with front(app) as cache, taking_part(tiny_device, bus, make_task(**TINY), cache=cache) as parts:
        participation, running, told = parts
        await told.until(lambda one: one.reason is not None)
        participation.end(Ending(ExecutionState.CANCELED))
        ending = await asyncio.wait_for(running, 20)
    assert ending.state is ExecutionState.CANCELED


async def test_what_is_never_made_is_waited_for_until_the_task_expires(
    tmp_path: Path, tiny_device: Device, bus: Bus, make_task: Any
) -> None:
    source = OneFile(tmp_path / "above")
    source.failure = NotYet("the server is exporting tiny", again_s=0.5)
    expires = (datetime.now(UTC) + timedelta(seconds=5)).replace(microsecond=0).isoformat()
    make = partial_call(make_task, expires_at=expires)
    execution = await ended(tiny_device, bus, make, Front(create_artefact_app(source)))
    assert execution.state is ExecutionState.TIMED_OUT
    assert source.asked >= 2


async def test_what_cannot_be_exported_is_rejected_with_the_servers_reason(
    tmp_path: Path, tiny_device: Device, bus: Bus, make_task: Any
) -> None:
    source = OneFile(tmp_path / "above")
    source.failure = Refused("export", "the server cannot export tiny: torch is not installed")
    execution = await ended(tiny_device, bus, make_task, Front(create_artefact_app(source)))
    assert execution.state is ExecutionState.REJECTED
    assert execution.reason == Reason(
        code="export", message="the server cannot export tiny: torch is not installed"
    )


async def test_a_front_that_is_for_others_is_waited_for_and_says_so(
    tmp_path: Path, tiny_device: Device, bus: Bus, make_task: Any
) -> None:
    source = OneFile(tmp_path / "above")
    source.failure = Refused("region", "this front is for other regions")
    async with front(Front(create_artefact_app(source))) as cache:
        task = make_task(**TINY, server={"address": cache, "tls": False})
        async with taking_part(tiny_device, bus, task, cache=cache) as (_, _, told):
            waits = await told.until(lambda one: one.reason is not None)
            assert waits.reason == Reason(code="region", message="this front is for other regions")
            assert (waits.state, waits.phase) == (ExecutionState.IN_PROGRESS, Phase.FETCHING)


@pytest.mark.parametrize("kind", ["train", "evaluate"])
async def test_an_artefact_of_another_model_with_the_same_name_is_rejected_once_its_arrays_come_twice(  # noqa: PLR0917
    tmp_path: Path, content: bytes, tiny_device: Device, bus: Bus, make_task: Any, flower: Any, kind: str
) -> None:
    source = OneFile(tmp_path / "above", content)
    arrays = {"fc.weight": INITIAL["fc.weight"], "fc.offset": INITIAL["fc.bias"]}
    async with (
        front(Front(create_artefact_app(source))) as cache,
        taking_part(tiny_device, bus, make_task(**TINY), cache=cache) as (_, running, told),
    ):
        first, second = [
            await asyncio.to_thread(
                flower.reply, flower.send(kind, {"task": "blobs", "round": number}, arrays)
            )
            for number in (1, 2)
        ]
        assert "the arrays do not fit the model" in first.error.reason  # which may be the message's fault
        assert "is not of the model that the task trains" in second.error.reason
        ending = await asyncio.wait_for(running, 40)
    assert ending.state is ExecutionState.REJECTED
    assert told.execution is not None
    assert told.execution.reason is not None
    assert told.execution.reason.code == "artefact"
    for problem in ("'fc.bias' is missing, the model has it", "'fc.offset' is not one of the model's"):
        assert problem in told.execution.reason.message
    assert kept(tiny_device) == set()
    assert flower.deactivated == [True]


async def test_messages_of_other_arrays_are_answered_with_an_error_and_a_good_artefact_stays(  # noqa: PLR0917
    tmp_path: Path, content: bytes, tiny_device: Device, bus: Bus, make_task: Any, flower: Any
) -> None:
    source = OneFile(tmp_path / "above", content)
    strange = {"fc.weight": INITIAL["fc.weight"], "fc.offset": INITIAL["fc.bias"]}
    large = INITIAL | {"fc.bias": np.zeros(3, np.float32)}
    async with (
        front(Front(create_artefact_app(source))) as cache,
        taking_part(tiny_device, bus, make_task(**TINY), cache=cache) as (_, running, told),
    ):
        for number, arrays in enumerate([strange, large, strange, INITIAL, large, large, INITIAL], 1):
            message = flower.send("train", {"task": "blobs", "round": number}, arrays)
            reply = await asyncio.to_thread(flower.reply, message)
            assert reply.has_error() == (arrays is not INITIAL), number
            assert not running.done()
        assert told.execution.state is ExecutionState.IN_PROGRESS
        assert kept(tiny_device) != set()


async def test_a_cut_download_goes_on_where_it_was(
    content: bytes, tiny_device: Device, bus: Bus, make_task: Any
) -> None:
    half = len(content) // 2
    app = Scripted(offer_of(content), lambda _: Cut(content, half), lambda _: partial(content, half))
    async with front(app) as cache, taking_part(tiny_device, bus, make_task(**TINY), cache=cache) as parts:
        _, _, told = parts
        await told.until(lambda one: one.phase is Phase.WAITING)
    assert app.ranges == [None, f"bytes={half}-"]
    waits = next(one for one in told.said if one.reason is not None)
    assert (waits.phase, waits.reason.code) == (Phase.FETCHING, "unavailable")


def failing(folder: Path, failure: Exception) -> ASGIApp:
    """Return a gateway's front that has no more to say than that."""
    source = OneFile(folder)
    source.failure = failure
    return Front(create_artefact_app(source))


USELESS: dict[str, Callable[[bytes, Path], ASGIApp]] = {
    "nobody above it": lambda _, folder: failing(folder, Unavailable("the front above does not answer")),
    "a server that starts": lambda _, __: Response("Service Unavailable", status_code=503),
    "other bytes": lambda good, _: Scripted(offer_of(good), lambda _: Response(bytes(len(good)))),
    "too large": lambda good, _: Scripted(offer_of(good).model_copy(update={"size": 3 * 1024**3})),
    "no offer": lambda _, __: Response("[]"),
    "other regions' alone": lambda _, folder: failing(folder, Refused("region", "for other regions")),
}


@pytest.mark.parametrize("cache", [None, *USELESS])
async def test_where_the_cache_is_of_no_use_the_server_is_asked(
    tmp_path: Path, content: bytes, tiny_device: Device, cache: str | None
) -> None:
    source = OneFile(tmp_path / "above", content)
    told: list[Reason | None] = []
    useless = USELESS[cache or "nobody above it"](content, tmp_path / "cache")
    async with front(Front(create_artefact_app(source))) as server, front(useless) as first:
        store = fetching.ArtefactStore(tiny_device.settings.artefact_folder)
        fetcher = fetching.Fetcher(store, tls=None, halt=fetching.Halt(), tell=told.append)
        fronts = [first if cache else "127.0.0.1:1", server]
        path = await asyncio.wait_for(asyncio.to_thread(fetcher.fetch, "blobs", "onnx", fronts), 40)
    assert path.read_bytes() == content
    assert told == [None]


async def test_a_lie_is_fetched_once_however_long_the_server_takes(
    tmp_path: Path, content: bytes, tiny_device: Device
) -> None:
    source = OneFile(tmp_path / "above", content)
    source.failure = NotYet("the server is exporting tiny", again_s=0.5)
    lies = Scripted(offer_of(content), lambda _: Response(bytes(len(content))))
    told: list[Reason | None] = []
    async with front(lies) as cache, front(Front(create_artefact_app(source))) as server:
        store = fetching.ArtefactStore(tiny_device.settings.artefact_folder)
        fetcher = fetching.Fetcher(store, tls=None, halt=fetching.Halt(), tell=told.append)
        fetched = asyncio.create_task(asyncio.to_thread(fetcher.fetch, "blobs", "onnx", [cache, server]))
        async with asyncio.timeout(20):
            while source.asked < 3:  # noqa: ASYNC110 - the front's count, and no event
                await asyncio.sleep(0.05)
        source.failure = None
        path = await asyncio.wait_for(fetched, 20)
    assert path.read_bytes() == content
    assert lies.ranges == [None]
    assert [reason and reason.code for reason in told] == [None, "artefact", None]


async def test_once_the_download_begins_nothing_is_waited_for(
    tmp_path: Path, content: bytes, tiny_device: Device
) -> None:
    source = OneFile(tmp_path / "above", content)
    source.failure = NotYet("the server is exporting tiny", again_s=0.5)
    told: list[Reason | None] = []

    def tell(reason: Reason | None) -> None:
        told.append(reason)
        if reason is not None:
            source.failure = None

    async with front(Front(create_artefact_app(source))) as server:
        store = fetching.ArtefactStore(tiny_device.settings.artefact_folder)
        fetcher = fetching.Fetcher(store, tls=None, halt=fetching.Halt(), tell=tell)
        await asyncio.wait_for(asyncio.to_thread(fetcher.fetch, "blobs", "onnx", [server]), 40)
    assert [reason and reason.code for reason in told] == [None, "artefact", None]


@pytest.mark.parametrize(
    ("hint", "due"),
    [
        (None, ("s:1",)),
        ("gw:1", ("gw:1", "s:1")),
        ("GW:1", ("GW:1", "s:1")),
        ("evil:1", ("s:1",)),
        ("s:1", ("s:1",)),
    ],
)
def test_a_gateways_hint_is_followed_to_a_front_on_the_devices_own_list(
    make_task: Any, hint: str | None, due: tuple[str, ...]
) -> None:
    task = Believed(make_task(), "d", "k", artefacts=hint)
    assert artefact_fronts(task, "s:1", ("s:1", "gw:1")) == due
