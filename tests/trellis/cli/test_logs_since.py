"""`--since` of `trellis logs`."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from trellis.cli.logs.following import Wanted
from trellis.cli.logs.lines import Level, Line
from trellis.cli.logs.since import moment
from trellis.errors import ConfigError

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
NOON = 1_772_366_400  # 2026-03-01T12:00Z, by `date -u -d 2026-03-01T12:00Z +%s`


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", NOON - 90),
        ("10m", NOON - 600),
        ("1.5 h", NOON - 5400),
        ("2d", NOON - 172_800),
        ("2026-03-01T08:30Z", NOON - 12_600),
        ("2026-03-01 13:30:00+01:00", NOON + 1800),
        ("999999999d", None),
        ("9999999s", NOON - 9_999_999),
    ],
)
def test_a_span_or_a_time_is_a_moment(text: str, seconds: int | None) -> None:
    if seconds is None:
        with pytest.raises(ConfigError):
            moment(text, NOW)
    else:
        assert moment(text, NOW) == seconds * 1000


def test_a_time_without_a_zone_is_local() -> None:
    assert moment("2026-03-01T08:30", NOW) == datetime(2026, 3, 1, 8, 30).timestamp() * 1000


@pytest.mark.parametrize("text", ["", "yesterday", "10", "-5m", "10 weeks", "2026-13-01", "\u0663s", "inf s"])
def test_what_is_neither_is_an_error_that_says_what_is_due(text: str) -> None:
    with pytest.raises(ConfigError) as raised:
        moment(text, NOW)
    assert str(raised.value).startswith(f"--since {text!r}: must be a span of time, as 90s, 10m, 2h or 1d")


def test_what_was_said_earlier_is_not_wanted() -> None:
    wanted = Wanted("digits", since=2000)
    line = Line(1999, "device", "eu-1", "cam-1", Level.INFO, "x", "early")
    assert [
        wanted.includes(one) for one in (line, Line(2000, "server", None, None, Level.INFO, "x", "now"))
    ] == [
        False,
        True,
    ]
