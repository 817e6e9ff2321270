"""What devices are told of a phase's messages; phases themselves run in `tests/contract/test_grid.py`."""

from __future__ import annotations

import time

from trellis.flower.backchannel import FleetView
from trellis.flower.phase import Announcer
from trellis.payloads import Round, now_ms


class Board:
    """Keeps what is announced."""

    def __init__(self) -> None:
        self.said: list[int] = []

    def wait(self, after: int, timeout_s: float) -> FleetView:
        return FleetView(version=1)

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
