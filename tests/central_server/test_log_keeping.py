"""What the server keeps of what gateways and devices say about a task."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from central_server.log_keeping import LogKeeper, TaskLog
from central_server.logbook import Wanted, newest
from tests.central_server.parts import WAIT_S
from trellis.mqtt import Bus, MemoryBroker
from trellis.payloads import Log, Reason, TaskStatus
from trellis.topics import Kind, Topics

TOPICS = Topics()
TASK = "digits"
WHERE = {"region": "eu-1", "task": TASK}
STATUS = TOPICS.path(Kind.TASK_STATUS, **WHERE)
GATEWAY = TOPICS.path(Kind.GATEWAY_LOG, **WHERE)
DEVICE = TOPICS.path(Kind.LOG, device="cam-1", **WHERE)


def line(message: str, logger: str = "regional_gateway.tier") -> bytes:
    return Log(level="WARNING", logger=logger, message=message).to_bytes()


@contextlib.asynccontextmanager
async def keeping(runs: Path, broker: MemoryBroker) -> AsyncIterator[Bus]:
    """A server's part that keeps lines, and a bus of those who say them."""
    (runs / TASK).mkdir(exist_ok=True, parents=True)
    async with broker.bus("server") as bus, broker.bus("they") as they:
        await bus.wait_connected(WAIT_S)
        await they.wait_connected(WAIT_S)
        with LogKeeper(runs) as keeper:
            log = TaskLog(TOPICS, TASK, frozenset({"eu-1"}), runs / TASK)
            following = [asyncio.create_task(log.follow(bus, keeper)), asyncio.create_task(keeper.run())]
            try:
                yield they
            finally:
                for one in following:
                    one.cancel()
                await asyncio.wait(following)


def kept(runs: Path) -> list[str]:
    return [one.message for one in newest(runs / TASK, Wanted(), 1000)]


async def say_until_kept(runs: Path, bus: Bus, message: str) -> None:
    """Say it until it is kept: at QoS 0, what comes before the subscription is lost."""
    async with asyncio.timeout(WAIT_S):
        while message not in kept(runs):
            await bus.publish(GATEWAY, line(message), qos=0)
            await asyncio.sleep(0.05)


async def test_a_verdict_is_kept_once_over_restarts_whatever_its_gateway_says_after_it(
    tmp_path: Path,
) -> None:
    broker = MemoryBroker()
    verdict = Reason(code="clock", message="not yet")
    status = TaskStatus(task=TASK, revision=1, desired="run", verdict=verdict)
    async with broker.bus("gateway") as gateway:
        await gateway.wait_connected(WAIT_S)
        await gateway.publish(STATUS, status.to_bytes(), retain=True)
        for start in ("first", "second"):
            async with keeping(tmp_path, broker) as they:
                await say_until_kept(tmp_path, they, start)
    assert kept(tmp_path).count("refused (clock): not yet") == 1


async def test_a_retained_line_is_not_kept_anew_with_each_connect(tmp_path: Path) -> None:
    broker = MemoryBroker()
    async with broker.bus("device") as device:
        await device.wait_connected(WAIT_S)
        await device.publish(DEVICE, line("of old"), retain=True)
    async with keeping(tmp_path, broker) as they:
        await say_until_kept(tmp_path, they, "of now")
    assert "of old" not in kept(tmp_path)


async def test_a_flood_of_what_is_no_line_is_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with keeping(tmp_path, MemoryBroker()) as they:
        await say_until_kept(tmp_path, they, "it hears")
        for _ in range(50):
            await they.publish(DEVICE, b"junk", qos=0)
        await say_until_kept(tmp_path, they, "last")
    (warning,) = [one for one in caplog.messages if "dropped" in one]
    assert f"topic={DEVICE}: dropped, 1 since" in warning
