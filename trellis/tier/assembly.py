"""Puts together what a tier's app runs its rounds with, from the task: at the centre, and in a region."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from trellis.descriptor import TaskDescriptor
from trellis.flower.channel import ServiceChannel
from trellis.flower.grid import TrellisGrid
from trellis.flower.phase import Policy
from trellis.identifiers import CENTRAL
from trellis.tier.round import TierRounds
from trellis.tier.strategies import build_strategy
from trellis.tier.strategy_table import Entry


@dataclass(frozen=True)
class Tier:
    """A tier's part of one task.

    Attributes:
        count: How many rounds the task has at this tier.
        strategy: Flower's strategy.
        entry: The table's word on it.
        grid: Reaches the members.
        rounds: Gathers, trains and evaluates.
    """

    count: int
    strategy: Strategy
    entry: Entry
    grid: TrellisGrid
    rounds: TierRounds


def assemble(descriptor: TaskDescriptor, here: str, *, grid: Grid, channel: ServiceChannel) -> Tier:
    """Return the tier `here`, `central` or a region that averages."""
    regional = here != CENTRAL
    built, entry = build_strategy(descriptor, regional=regional)
    strategy = cast(Strategy, built)
    participants = descriptor.participants_at(here)
    count = descriptor.train.rounds * (descriptor.regional_rounds_of(here) if regional else 1)
    wrapped = TrellisGrid(
        grid,
        channel,
        task=descriptor.task,
        revision=descriptor.revision,
        policy=Policy(deadline_s=participants.deadline_s, quorum=participants.quorum),
        rounds=count,
        fold=entry.sums,
        due=entry.due,
    )
    rounds = TierRounds(
        task=descriptor.task,
        seed=descriptor.train.seed,
        rounds=count,
        participants=participants,
        strategy=strategy,
        entry=entry,
        grid=wrapped,
        report=channel.report,
    )
    return Tier(count, strategy, entry, wrapped, rounds)
