"""Log lines of tasks: bounded in size and in number."""

from __future__ import annotations

import asyncio
import logging
import sys

import pytest
from held_clock import HeldClock

from trellis import task_log
from trellis.errors import Unavailable
from trellis.payloads import Log
from trellis.task_log import LINES_A_SECOND, TaskLines, log_of, untagged


def line(message: str) -> Log:
    return Log(level="INFO", logger="test", message=message)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> HeldClock:
    return HeldClock.of(task_log, monkeypatch)


class Heard:
    """An outlet that keeps what it is given, until `last` comes."""

    def __init__(self, last: str) -> None:
        self.said: list[tuple[str, str]] = []
        self._last, self.ended = last, asyncio.Event()

    async def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> None:
        assert (qos, retain) == (0, False)
        self.said.append((topic, Log.parse(payload).message))
        if self.said[-1][1] == self._last:
            self.ended.set()


async def test_ten_lines_a_second_of_each_task_are_said_and_the_next_says_how_many_were_not(
    clock: HeldClock,
) -> None:
    last = "(3 lines left out) later"
    heard = Heard(last)
    lines = TaskLines(heard, lambda task: f"{task}/log")
    sender = asyncio.create_task(lines.run(), name="log lines")
    for number in range(LINES_A_SECOND + 3):
        lines.say("one", line(f"{number}"))
    lines.say("two", line("of another"))
    clock.now += 1.1
    lines.say("one", line("later"))
    await asyncio.wait_for(heard.ended.wait(), 30)
    first = [("one/log", f"{number}") for number in range(LINES_A_SECOND)]
    assert heard.said == [*first, ("two/log", "of another"), ("one/log", last)]
    sender.cancel()
    await asyncio.wait({sender})


@pytest.mark.usefixtures("clock")
async def test_what_was_said_before_the_beginning_and_at_the_end_is_published_and_a_flood_wakes_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    heard = Heard("first")
    lines = TaskLines(heard, lambda task: f"{task}/log")
    lines.say("one", line("first"))
    sender = asyncio.create_task(lines.run(), name="log lines")
    await asyncio.wait_for(heard.ended.wait(), 30)
    wakes = []
    monkeypatch.setattr(asyncio.get_running_loop(), "call_soon_threadsafe", wakes.append)
    for number in range(1000):
        lines.say("two", line(f"{number}"))
    sender.cancel()
    await asyncio.wait({sender})
    assert len(wakes) == LINES_A_SECOND
    assert heard.said == [
        ("one/log", "first"),
        *(("two/log", f"{number}") for number in range(LINES_A_SECOND)),
    ]


async def test_a_line_that_the_bus_cannot_take_holds_up_none_after_it() -> None:
    class Closed(Heard):
        async def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> None:
            if topic == "one/log":
                raise Unavailable("the bus is not open")
            await super().publish(topic, payload, qos=qos, retain=retain)

    heard = Closed("last")
    lines = TaskLines(heard, lambda task: f"{task}/log")
    sender = asyncio.create_task(lines.run(), name="log lines")
    lines.say("one", line("lost"))
    lines.say("two", line("last"))
    await asyncio.wait_for(heard.ended.wait(), 30)
    sender.cancel()
    await asyncio.wait({sender})


def test_a_long_line_keeps_its_beginning_and_its_end() -> None:
    try:
        raise OSError("x" * 20_000 + " at last")
    except OSError:
        record = logging.LogRecord("test", logging.ERROR, __file__, 1, "it %s", ("broke",), sys.exc_info())
    said = log_of(record)
    assert said.message.startswith("it broke\nTraceback (most recent call last):")
    assert said.message.endswith("x at last")
    assert len(said.message) < 8010


def test_a_line_names_its_task_at_its_beginning_or_not_at_all() -> None:
    assert untagged("task=digits-2: its run is over") == ("digits-2", "its run is over")
    assert untagged("task=digits run=7: submitted") == ("digits", "run=7: submitted")
    assert untagged("refused task=digits") is None
    assert untagged("task=") is None
    assert untagged(f"task={'x' * 64}: too long a name") is None
