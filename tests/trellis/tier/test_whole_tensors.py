"""A model with integer tensors, and the strategy that cannot take them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from trellis.descriptor_tiers import Participants
from trellis.tier.round import RoundFailed, TierRounds
from trellis.tier.strategy_table import STRATEGIES


def test_qfedavg_refuses_a_model_with_integer_tensors_before_anybody_is_asked() -> None:
    nobody = cast(Any, SimpleNamespace())
    rounds = TierRounds(
        task="t",
        seed=0,
        rounds=1,
        participants=Participants(),
        strategy=nobody,
        entry=STRATEGIES["qfedavg"],
        grid=nobody,
        report=nobody,
    )
    with pytest.raises(RoundFailed, match="the model's tensors counter are no floats, which qfedavg needs"):
        rounds.train(1, {"w": np.zeros(2, np.float32), "counter": np.array(3, np.int64)})
