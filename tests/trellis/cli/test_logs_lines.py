"""Log lines as people and machines read them."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest

from trellis.cli.logs.lines import Level, Line, rendered
from trellis.payloads import Log

TRACEBACK = "train failed\nTraceback (most recent call last):\n  File x\nOSError: gone"
LINE = Line(1_700_000_000_007, "device", "eu-1", "cam-1", Level.ERROR, "device_agent", TRACEBACK)


@pytest.fixture(autouse=True)
def utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def test_a_traceback_is_indented_below_its_line() -> None:
    assert rendered(LINE, colours=False).splitlines() == [
        "2023-11-14 22:13:20.007  eu-1/cam-1        ERROR     train failed",
        "    Traceback (most recent call last):",
        "      File x",
        "    OSError: gone",
    ]


@pytest.mark.parametrize(
    ("source", "region", "speaker"), [("server", None, "server"), ("gateway", "eu-1", "gateway eu-1")]
)
def test_servers_and_gateways_have_their_names(source: str, region: str | None, speaker: str) -> None:
    line = Line(0, source, region, None, Level.INFO, "x", "said")
    assert f"  {speaker:<16}  INFO      said" in rendered(line, colours=False)


def test_what_a_device_says_cannot_steer_the_terminal() -> None:
    evil = Line(0, "device", "eu-1", "cam-1", Level.INFO, "x", "\x1b[2Jgone\r\x07 and \u202eback")
    shown = rendered(evil, colours=False)
    assert shown.isprintable()
    assert "\\x1b[2Jgone" in shown


@pytest.mark.parametrize("ts", [2**53, 253_402_300_800_000, -(2**53), 10**400])
def test_a_time_that_no_calendar_has_is_shown_as_it_came(ts: int) -> None:
    line = Line(ts, "server", None, None, Level.INFO, "x", "said")
    assert rendered(line, colours=False) == f"{ts} ms  server            INFO      said"


@pytest.mark.parametrize("zone", ["UTC-14", "UTC+12"])
def test_every_time_of_a_payload_is_one_of_the_calendar(monkeypatch: pytest.MonkeyPatch, zone: str) -> None:
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    latest = Log(ts=253_402_214_400_000, level="INFO", logger="x", message="said").ts
    for ts in (0, latest):
        shown = rendered(Line(ts, "server", None, None, Level.INFO, "x", "said"), colours=False)
        assert shown[:4] in {"1969", "1970", "9999", "9998"}


def test_colours_are_of_the_level_alone() -> None:
    assert "\x1b[31mERROR   \x1b[0m" in rendered(LINE, colours=True)
    assert "\x1b" not in rendered(LINE, colours=False)


def test_a_line_as_json_is_one_line_with_every_field() -> None:
    text = LINE.to_json()
    assert "\n" not in text
    assert Line.from_json(json.loads(text)) == LINE
    assert json.loads(text).keys() == {"ts", "source", "region", "device", "level", "logger", "message"}


def test_levels_are_ordered() -> None:
    assert [level for level in Level if level.at_least(Level.WARNING)] == ["WARNING", "ERROR", "CRITICAL"]
