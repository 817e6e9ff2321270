"""Tasks that are posted to the gateway above alone: they come to this one, if not at once."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from regional_gateway.handed_down import HandedDown
from regional_gateway.ledger import Ledger
from regional_gateway.place import Place, TierAbove
from regional_gateway.store import Store
from trellis.errors import Refused, Unavailable
from trellis.mqtt import MemoryBroker
from trellis.payloads import ExecutionState, TaskState
from trellis.topics import Topics

BOTH = {"regions": ["de", "eu-1"]}
HANDED = "trellis/v1/de/tasks/digits/descriptor"


async def test_a_task_and_its_cancellation_posted_above_come_to_the_region_below(
    world: Any, watching: Any, wait_until: Any, operator: Any
) -> None:
    async with (
        world.gateway("de") as above,
        world.gateway(parent=str(above.http.base_url).rstrip("/")) as below,
        watching(world.region) as seen,
    ):
        await above.post(operator.envelope(**BOTH))
        await wait_until(lambda: "eu-1/tasks/digits/descriptor" in seen.retained)
        assert (await below.http.get("/v1/tasks/digits")).json()["desired"] == "run"
        await above.post(operator.envelope(revision=2, desired="canceled", **BOTH))
        await wait_until(lambda: below.gateway.ledger.get("digits").descriptor.revision == 2)


async def test_a_revision_for_which_it_is_too_early_is_taken_once_the_server_has_it(
    *, world: Any, watching: Any, wait_until: Any, operator: Any, say: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr(
        "regional_gateway.handed_down.RETRY_S", 600.0
    )  # the server's word has it tried at once
    async with (
        world.gateway("de") as above,
        world.gateway(parent=str(above.http.base_url).rstrip("/")) as below,
        watching(world.region) as seen,
    ):
        ledger = below.gateway.ledger
        await above.post(operator.envelope(**BOTH))
        await wait_until(lambda: ledger.get("digits"))
        # The gateway above has lost sight of a device that this one still sees at work.
        cam = "eu-1/devices/cam-7/tasks/digits/execution"
        await seen.publish(cam, say.execution(ExecutionState.IN_PROGRESS, revision=1))
        await wait_until(lambda: below.gateway.has_begun("digits", 1))
        await above.post(operator.envelope(revision=2, train={"rounds": 4, "learning_rate": 0.1}, **BOTH))
        await wait_until(lambda: (known := ledger.get("digits")).verdict and known.verdict.code == "conflict")
        await seen.publish("central/tasks/digits/state", say.central(TaskState.RUNNING, 2))
        await wait_until(lambda: ledger.get("digits").descriptor.revision == 2)
        assert ledger.get("digits").verdict is None


@contextlib.asynccontextmanager
async def taking(folder: Path, post: Callable[[bytes], Any]) -> AsyncIterator[Any]:
    """A parent's bus that publishes, below which `post` takes what is handed down."""
    place = Place("eu-1", above=(TierAbove(region="de"),))
    broker = MemoryBroker()
    async with Store(folder / "s.sqlite") as store, broker.bus("parent") as parent, broker.bus("own") as own:
        await parent.wait_connected(60)
        handed_down = HandedDown(Topics(), place, await Ledger.load(store), post)
        taking = asyncio.create_task(handed_down.take_over(own))
        yield parent
        taking.cancel()


@pytest.mark.parametrize(("error", "tries"), [(Unavailable("disk full"), 2), (Refused("untrusted", "no"), 1)])
async def test_what_the_disk_does_not_take_is_posted_again_and_what_is_refused_is_not(
    *,
    tmp_path: Path,
    wait_until: Any,
    operator: Any,
    monkeypatch: Any,
    caplog: Any,
    error: Exception,
    tries: int,
) -> None:
    monkeypatch.setattr("regional_gateway.handed_down.RETRY_S", 0.05)
    tried: list[bytes] = []

    async def post(envelope: bytes) -> None:
        tried.append(envelope)
        if envelope == first and tried.count(first) == 1:
            raise error

    first, second = operator.envelope(**BOTH), operator.envelope(task="marker", **BOTH)
    async with taking(tmp_path, post) as parent:
        await parent.publish(HANDED, first, retain=True)
        await wait_until(lambda: tried.count(first) == tries)
        await parent.publish(HANDED.replace("digits", "marker"), second, retain=True)
        await wait_until(lambda: second in tried)
        await asyncio.sleep(0.1)  # two more attempts, were there any
        assert tried.count(first) == tries
    assert ("is tried again: disk full" in caplog.text) == (tries == 2)
