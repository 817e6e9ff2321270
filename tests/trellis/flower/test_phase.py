"""What a phase says of its messages; phases that have answers run in `tests/contract/test_grid.py`."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from flwr.app import ConfigRecord, Message, RecordDict

from tests.trellis.flower.test_checkin import Desk, device
from trellis.flower import phase
from trellis.flower.backchannel import FleetDevice, FleetView
from trellis.flower.phase import Announcer, Policy
from trellis.payloads import Phase, Round, now_ms


class Board:
    """Keeps what is announced, and shows one view of the fleet after the other, the last again and again.

    Attributes:
        meanwhile: Done once, by the first wait after it was set.
    """

    def __init__(self, *views: FleetView) -> None:
        self.said: list[int] = []
        self.meanwhile: Callable[[], object] | None = None
        self._views = [*views] or [FleetView(version=1)]

    def wait(self, after: int, timeout_s: float) -> FleetView:
        if (meanwhile := self.meanwhile) is not None:
            self.meanwhile = None
            meanwhile()
        return self._views.pop(0) if len(self._views) > 1 else self._views[0]

    def announce(self, round: Round) -> None:
        self.said.append(round.announced)


def test_an_app_that_follows_another_says_other_numbers_from_its_first_message_on() -> None:
    # Both send as many messages: a device that has heard of the first's must pull the second's, too.
    board = Board()
    for _ in range(2):
        announcer = Announcer(board, rounds=3)
        announcer.sent(2)
        announcer.count(1)
        announcer.sent(1)
        while now_ms() <= board.said[-1]:
            time.sleep(0.001)
    assert board.said == sorted(set(board.said))


def test_a_message_that_is_sent_again_keeps_its_devices_name_whoever_that_is_by_now(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("trellis.flower.delivery.PATIENCE_S", 0.0)
    desk = Desk()

    def checked_in(query: str, node_id: int) -> FleetDevice:
        proof: dict[str, Any] = {"nonce": desk.nonce(query), "message_id": query}
        desk.grid.answer(query, region="eu-1", device="cam-7", samples=60, nonce=proof["nonce"])
        return device(node_id=node_id, **proof)

    desk.step(device(node_id=5))
    desk.step(checked_in("q1", 5))
    at_work = device(node_id=5, phase=Phase.WAITING, connects=1)
    back = device(node_id=5, phase=Phase.WAITING, connects=2)
    board = Board(*(FleetView(version=n, devices=(one,)) for n, one in enumerate((at_work, back), start=1)))
    running = phase.Phase(
        mail=desk.grid,
        fleet=board,
        checkin=desk.checkin,
        announcer=Announcer(board, rounds=3),
        policy=Policy(deadline_s=0.5, quorum=1.0),
        outgoing=[Message(RecordDict({"config": ConfigRecord({"server-round": 1})}), 5, "train")],
        fold=False,
        due=(),
        stale=set(),
        on_waiting=lambda _: None,
    )

    def comes_as_another_node() -> None:
        desk.step(device(node_id=6))
        desk.step(checked_in("q3", 6))

    board.meanwhile = comes_as_another_node  # within the run, whose deadline has then been looked at
    _, standing = running.run()
    assert len(desk.grid.sent) > 4, "nothing was sent again"
    assert [(one.region, one.device, one.outcome) for one in standing.outcomes] == [("eu-1", "cam-7", "late")]
