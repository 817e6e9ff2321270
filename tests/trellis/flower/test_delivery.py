"""A message that never reached its device is noticed, and sent again to it."""

from __future__ import annotations

from typing import Any

import pytest
from flwr.app import RecordDict
from held_clock import HeldClock

from trellis.flower import delivery
from trellis.flower.backchannel import FleetDevice, FleetView
from trellis.flower.delivery import PATIENCE_S, Delivery
from trellis.flower.exchange import Exchange, Flight, Slot
from trellis.flower.updates import Update
from trellis.payloads import ExecutionState, Phase


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> HeldClock:
    return HeldClock.of(delivery, monkeypatch)


def device(connects: int, phase: Phase | None = Phase.WAITING, **change: Any) -> FleetDevice:
    fields = {"online": True, "state": ExecutionState.IN_PROGRESS, "node_id": 1, **change}
    return FleetDevice(region="eu-1", device="d1", phase=phase, connects=connects, **fields)


def test_a_device_that_has_connected_anew_and_rests_has_not_got_its_message(clock: HeldClock) -> None:
    sent = Delivery(connects=2)
    assert not sent.failed(device(3))
    clock.now += PATIENCE_S - 0.1
    assert not sent.failed(device(3)), "it may be pulling it this moment"
    clock.now += 0.2
    assert sent.failed(device(3))


@pytest.mark.parametrize(
    ("size", "due_s"),
    [(250_000, PATIENCE_S), (500_000, 5.0), (1024**2, 10.48576), (1024**2 + 1, PATIENCE_S)],
)
def test_what_comes_inline_has_the_time_that_it_takes_at_a_megabit_a_second_or_three(
    clock: HeldClock, size: int, due_s: float
) -> None:
    sent = Delivery(connects=2, size=size)
    assert not sent.failed(device(3))
    clock.now += due_s - 0.1
    assert not sent.failed(device(3))
    clock.now += 0.2
    assert sent.failed(device(3))


@pytest.mark.parametrize("phase", [Phase.CONNECTING, Phase.ASKED, Phase.TRAINING, Phase.EVALUATING])
def test_one_that_is_at_work_is_let_be_and_its_patience_begins_anew(clock: HeldClock, phase: Phase) -> None:
    sent = Delivery(connects=2)
    assert not sent.failed(device(3))
    clock.now += PATIENCE_S + 1
    assert not sent.failed(device(3, phase))
    assert not sent.failed(device(3))


def test_one_that_stayed_connected_is_slow_and_nothing_else(clock: HeldClock) -> None:
    sent = Delivery(connects=2)
    assert not sent.failed(device(2))
    clock.now += 3600
    assert not sent.failed(device(2))


def test_a_lost_message_is_sent_again_once_and_whichever_answer_comes_fills_its_slot(
    clock: HeldClock,
) -> None:
    phase = Exchange("train", 1.0)
    slot = Slot(RecordDict(), "train")
    phase.add(slot)
    phase.sent(slot, "m1", Flight("eu-1/d1", 1))
    back = FleetView(version=1, devices=(device(1),))
    assert phase.undelivered(back) == []
    clock.now += PATIENCE_S
    ((found, flight),) = phase.undelivered(back)
    assert (found, flight.name) == (slot, "eu-1/d1")
    assert phase.undelivered(back) == []
    phase.sent(slot, "m2", Flight("eu-1/d1", 1, delivery=Delivery(1)))
    assert set(phase.awaited()) == {"m1", "m2"}
    assert phase.fill("m2", Update({}, {}, {}, 10, 0))
    assert phase.is_complete(back)
    (outcome,) = phase.close(back).outcomes
    assert (outcome.device, outcome.outcome) == ("d1", "replied")


def test_what_was_answered_or_went_to_one_who_is_away_is_not_sent_again(clock: HeldClock) -> None:
    phase = Exchange("train", 1.0)
    for node in (1, 2):
        slot = Slot(RecordDict(), "train")
        phase.add(slot)
        phase.sent(slot, f"m{node}", Flight(f"eu-1/d{node}", node))
    phase.fill("m1", Update({}, {}, {}, 10, 0))
    back = FleetView(version=1, devices=(device(1), device(1, online=False, node_id=2)))
    phase.undelivered(back)
    clock.now += PATIENCE_S
    assert phase.undelivered(back) == []
