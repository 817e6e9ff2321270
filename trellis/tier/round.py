"""The rounds of one tier: gather its members, select, train, aggregate, evaluate.

The centre and a region run the same ones. They use the four public steps of a Flower strategy
(`configure_train`, `aggregate_train`, `configure_evaluate`, `aggregate_evaluate`), because `Strategy.start`
can neither stop, nor resume, nor keep a deadline.

    TierRounds.train
    ├── Canceled      the task was called off
    ├── Unavailable   the service is gone
    └── RoundFailed   too few members, or no quorum: the reason is for people
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord
from flwr.serverapp.strategy import Strategy

from trellis.descriptor_tiers import Participants
from trellis.errors import TrellisError
from trellis.flower.backchannel import StateReport
from trellis.flower.checkin import Member
from trellis.flower.exchange import Standing
from trellis.flower.grid import TrellisGrid
from trellis.payloads import Round, RoundPhase
from trellis.tensors import Arrays
from trellis.tier.selection import select
from trellis.tier.strategy_state import restore_strategy, strategy_state
from trellis.tier.strategy_table import Entry
from trellis.tier.waiting import counted, gathering, running

logger = logging.getLogger(__name__)

_SETTLE_S = 5.0
"""How long the first round waits, once its minimum is here, for members that are checking in."""
_ATTEMPTS = 3
"""A round below its quorum is tried again with whoever is here, so often."""


class RoundFailed(TrellisError):
    """A round cannot be; the message is the reason that people are told."""


@dataclass(frozen=True)
class Trained:
    """A finished training phase; `standby` counts those who were here and not selected."""

    arrays: Arrays
    metrics: dict[str, float]
    standing: Standing
    standby: int = 0


class TierRounds:
    """The rounds of one tier, one at a time.

    Args:
        task: The task's name.
        seed: What selection derives from, with the round's number.
        rounds: How many the task has at this tier, for announcements.
        participants: Who takes part, and when a round ends.
        strategy: Flower's strategy.
        entry: The table's word on it.
        grid: Reaches the members.
        report: Is told whether the tier gathers or runs, and for whom it waits.
    """

    def __init__(
        self,
        *,
        task: str,
        seed: int,
        rounds: int,
        participants: Participants,
        strategy: Strategy,
        entry: Entry,
        grid: TrellisGrid,
        report: Callable[[StateReport], None],
    ) -> None:
        self._task, self._seed, self._rounds = task, seed, rounds
        self._participants = participants
        self._strategy, self._entry = strategy, entry
        self._grid, self._report = grid, report
        self._settled: float | None = None
        grid.on_waiting = lambda message: report(running(message))

    def train(self, number: int, arrays: Arrays, asks: Mapping[str, bool] | None = None) -> Trained:
        """Return what the members make of `arrays` in round `number`.

        Args:
            number: The round's number.
            arrays: The model that it starts from.
            asks: What members are asked besides what the strategy asks of them: what a tier above wants.

        Raises:
            RoundFailed: Too few members came within the deadline, or the quorum was never reached.
        """
        asked = {**self._entry.asks, **(asks or {})}
        if self._entry.kind == "fair":
            _require_floats(arrays, number)
        problem = ""
        for attempt in range(1, _ATTEMPTS + 1):
            members = self.gather(number)
            self._report(running(None))
            participants = self._participants
            chosen = select(members, participants, seed=self._seed, round_number=number)
            self._grid.show_only(chosen)
            before = strategy_state(self._strategy, self._entry.state)
            messages = self._strategy.configure_train(
                number, _record(arrays), self._config(number, asked), self._grid
            )
            replies = list(self._grid.send_and_receive(messages))
            standing = self._grid.last
            if standing is not None and standing.quorum_reached:
                new, metrics = self._strategy.aggregate_train(number, replies)
                if new is not None:
                    standby = len(members) - len(chosen)
                    return Trained(_like(new, arrays, number), _floats(metrics), standing, standby)
            restore_strategy(self._strategy, before, self._entry.state)
            problem = _shortfall(number, standing, participants.quorum)
            logger.warning("attempt %d of %d: %s", attempt, _ATTEMPTS, problem)
        raise RoundFailed(f"{problem}; tried {_ATTEMPTS} times")

    def evaluate(self, number: int, arrays: Arrays) -> tuple[dict[str, float], Standing | None]:
        """Return what the members that are here find of `arrays`, and their standing if there are any."""
        self._grid.show_only(self._present())
        if not list(self._grid.get_node_ids()):
            return {}, None
        messages = self._strategy.configure_evaluate(
            number, _record(arrays), self._config(number), self._grid
        )
        replies = list(self._grid.send_and_receive(messages))
        standing = self._grid.last
        return _floats(self._strategy.aggregate_evaluate(number, replies)), standing

    def gather(self, number: int) -> list[Member]:
        """Return who is here once the minimum is; a round never starts below it.

        Raises:
            RoundFailed: It is not reached within the deadline, which runs from when the last one went, and
                begins anew once no more members that do another task first would make it up.
        """
        participants = self._participants
        self._grid.wait_members(-1, 0.0)  # who has come and gone since anybody last looked
        started, excused, version, said = time.monotonic(), float("-inf"), -1, -1
        while True:
            now = time.monotonic()
            began = max(excused, min(started, now - self._grid.deserted_s))
            left = participants.deadline_s - (now - began)
            version, members = self._grid.wait_members(version, max(0.0, min(left, 1.0)))
            if len(members) >= participants.minimum:
                # Whoever is on the way is waited for, once: who is in the first round is no matter of
                # milliseconds, and one that never arrives costs no other round anything.
                self._settled = self._settled or time.monotonic() + _SETTLE_S
                if not self._grid.newcomers or time.monotonic() >= self._settled:
                    return members
            elif self._grid.queued and len(members) + self._grid.queued >= participants.minimum:
                excused = time.monotonic()  # they are late through no fault
            elif left <= 0:
                due = counted(participants.minimum, members)
                raise RoundFailed(f"round {number}: waited {participants.deadline_s:g} s for {due}")
            if len(members) != said:
                said = len(members)
                if said < participants.minimum or number == 1:
                    self._report(gathering(number, participants.minimum, members, left))
                self._grid.say(
                    Round(round=number - 1, rounds=self._rounds, phase=RoundPhase.GATHERING, standby=said)
                )

    def _present(self) -> list[Member]:
        _, members = self._grid.wait_members(-1, 0.0)
        taking_part = self._participants.model_copy(update={"fraction": 1.0})
        return select(members, taking_part, seed=self._seed, round_number=0) if members else []

    def _config(self, number: int, asked: Mapping[str, bool] | None = None) -> ConfigRecord:
        return ConfigRecord({"task": self._task, "round": number, **(asked or {})})


def _record(arrays: Arrays) -> ArrayRecord:
    return ArrayRecord({name: Array(np.asarray(array)) for name, array in arrays.items()})


def _require_floats(arrays: Arrays, number: int) -> None:
    # Flower's QFedAvg scales every difference in place.
    whole = [name for name, array in arrays.items() if array.dtype.kind != "f"]
    if whole:
        raise RoundFailed(
            f"round {number}: the model's tensors {', '.join(whole)} are no floats, which qfedavg needs: "
            "name another strategy"
        )


def _like(record: ArrayRecord, arrays: Arrays, number: int) -> Arrays:
    """Return a strategy's result in the model's own dtypes: FedAdam and others return float64.

    Raises:
        RoundFailed: It holds NaN or infinity, of which no device could go on.
    """
    found = {}
    for name, array in arrays.items():
        new = record[name].numpy()
        if array.dtype.kind in "iu" and new.dtype.kind == "f":
            new = np.rint(new)
        found[name] = new.astype(array.dtype, copy=False)
        if found[name].dtype.kind == "f" and not np.isfinite(found[name]).all():
            raise RoundFailed(f"round {number}: the strategy's tensor {name!r} holds NaN or infinity")
    return found


def _floats(metrics: MetricRecord | None) -> dict[str, float]:
    found = {} if metrics is None else metrics
    return {k: float(v) for k, v in found.items() if isinstance(v, int | float) and np.isfinite(v)}


def _shortfall(number: int, standing: Standing | None, quorum: float) -> str:
    if standing is None:
        return f"round {number}: no device was left to train"
    reasons = sorted({outcome.reason for outcome in standing.outcomes if outcome.reason})
    why = f" ({'; '.join(reasons)[:500]})" if reasons else ""
    return (
        f"round {number}: {standing.replied} of {standing.slots} replied, {standing.failed} failed, "
        f"{standing.lost} lost; the quorum is {quorum:g}{why}"
    )
