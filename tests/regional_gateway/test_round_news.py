"""Which rounds are news."""

from __future__ import annotations

from regional_gateway.round_news import Rounds
from trellis.payloads import Round, RoundPhase


def round_at(ts: int, replied: int = 0) -> Round:
    return Round(ts=ts, round=1, rounds=3, phase=RoundPhase.TRAIN, announced=5, replied=replied)


def test_a_polled_round_that_was_only_stamped_anew_is_no_news() -> None:
    rounds = Rounds()
    first = round_at(10)
    assert rounds.polled("digits", first) == first.to_bytes()
    assert [rounds.polled("digits", round_at(ts)) for ts in (11, 12, 13)] == [None, None, None]
    assert rounds.latest("digits") == first.to_bytes()
    assert rounds.polled("digits", round_at(14, replied=1)) == round_at(14, replied=1).to_bytes()


def test_a_polled_round_that_was_heard_over_mqtt_is_no_news() -> None:
    rounds = Rounds()
    assert rounds.heard("digits", round_at(10).to_bytes())
    assert rounds.polled("digits", round_at(11)) is None
    assert rounds.polled("digits", round_at(9, replied=1)) is None  # MQTT has overtaken it
    assert rounds.polled("digits", round_at(12, replied=1)) is not None


def test_a_round_heard_twice_is_news_once_and_an_empty_one_removes() -> None:
    rounds = Rounds()
    heard = round_at(10).to_bytes()
    assert [rounds.heard("digits", heard), rounds.heard("digits", heard)] == [True, False]
    assert [rounds.heard("digits", b""), rounds.heard("digits", b"")] == [True, False]
    assert rounds.latest("digits") is None
