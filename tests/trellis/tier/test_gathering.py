"""How long a round waits for its members."""

from __future__ import annotations

from typing import Any, cast

import pytest

from trellis.descriptor_tiers import Participants
from trellis.flower.checkin import Member
from trellis.tier.round import RoundFailed, TierRounds
from trellis.tier.strategy_table import STRATEGIES


class Deserted:
    """A grid that last looked long ago, when nobody was here; meanwhile its members have come and gone."""

    newcomers = queued = 0

    def __init__(self) -> None:
        self.deserted_s = 1000.0
        self.waits_s: list[float] = []

    def wait_members(self, after: int, timeout_s: float) -> tuple[int, list[Member]]:
        self.waits_s.append(timeout_s)
        self.deserted_s = 0.0 if len(self.waits_s) < 3 else 1000.0
        return 1, []

    def say(self, _: Any) -> None: ...


def test_the_deadline_of_a_round_is_not_measured_by_what_was_seen_before_it() -> None:
    grid = Deserted()
    rounds = TierRounds(
        task="t",
        seed=0,
        rounds=1,
        participants=Participants(minimum=1, deadline_s=30),
        strategy=cast(Any, None),
        entry=STRATEGIES["fedavg"],
        grid=cast(Any, grid),
        report=lambda _: None,
    )
    with pytest.raises(RoundFailed, match="waited 30 s for 1 members, 0 are here"):
        rounds.gather(1)
    assert grid.waits_s == [0.0, 1.0, 1.0, 0.0]  # a look; then waits, until the members are long gone
