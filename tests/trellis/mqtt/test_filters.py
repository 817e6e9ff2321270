"""Topic filters; the cases of MQTT 3.1.1, sections 4.7.1 and 4.7.2, and properties."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paho.mqtt.client import topic_matches_sub

from trellis.errors import PayloadError
from trellis.mqtt import match
from trellis.mqtt.filters import check_filter, check_topic


@pytest.mark.parametrize(
    ("filter", "topic", "expected"),
    [
        ("sport/tennis/player1/#", "sport/tennis/player1", True),
        ("sport/tennis/player1/#", "sport/tennis/player1/score/wimbledon", True),
        ("sport/tennis/+", "sport/tennis/player1", True),
        ("sport/tennis/+", "sport/tennis/player1/ranking", False),
        ("sport/+", "sport", False),
        ("sport/+", "sport/", True),
        ("+/+", "/finance", True),
        ("/+", "/finance", True),
        ("+", "/finance", False),
        ("#", "any/thing", True),
        ("#", "$SYS/uptime", False),
        ("+/uptime", "$SYS/uptime", False),
        ("$SYS/#", "$SYS/uptime", True),
        ("a/b", "a/B", False),
        ("a/b", "a/b/c", False),
        ("a/b/c", "a/b", False),
    ],
)
def test_a_filter_matches_as_the_standard_says(filter: str, topic: str, expected: bool) -> None:
    assert match(filter, topic) is expected


LEVEL = st.sampled_from(["a", "b", "", "$x"])
FILTER = st.lists(st.one_of(LEVEL, st.just("+")), min_size=1, max_size=5).flatmap(
    lambda levels: st.sampled_from(["/".join(levels), "/".join([*levels, "#"])])
)


@given(filter=FILTER, topic=st.lists(LEVEL, min_size=1, max_size=5).map("/".join))
def test_it_agrees_with_paho(filter: str, topic: str) -> None:
    if filter and topic:
        assert match(filter, topic) == topic_matches_sub(filter, topic)


@pytest.mark.parametrize("wrong", ["", "a/#/b", "a#", "#a", "a/b+", "a\0"])
def test_a_filter_that_breaks_the_rules_is_refused(wrong: str) -> None:
    with pytest.raises(PayloadError):
        check_filter(wrong)


@pytest.mark.parametrize("wrong", ["", "a/#", "+", "a\0", "x" * 65536])
def test_a_topic_that_breaks_the_rules_is_refused(wrong: str) -> None:
    with pytest.raises(PayloadError):
        check_topic(wrong)
