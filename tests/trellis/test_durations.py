"""Spans of time as people say them."""

from __future__ import annotations

import pytest

from trellis.durations import in_words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0.00 s"),
        (9.994, "9.99 s"),
        (9.996, "10.0 s"),
        (59.94, "59.9 s"),
        (59.96, "1 min 0 s"),
        (199.6, "3 min 20 s"),
        (3599.6, "1 h 0 min"),
        (7500, "2 h 5 min"),
        (100 * 3600, "4 d 4 h"),
    ],
)
def test_a_span_has_one_or_two_units_and_never_60_of_one(seconds: float, words: str) -> None:
    assert in_words(seconds) == words
