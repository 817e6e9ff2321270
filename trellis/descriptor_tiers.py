"""What a task says of its tiers: who takes part at each, what is made of their updates, and where."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator

from trellis.descriptor_fields import Fraction, Name, Number, Positive
from trellis.descriptor_rules import Rule, Section
from trellis.errors import Fault
from trellis.identifiers import RegionName

Tier = Literal["central", "regional"]
LONGEST_DEADLINE_S = 7 * 24 * 3600

_Rounds = Annotated[int, Field(strict=True, ge=1, le=1000)]


class Strategy(Section):
    """A Flower strategy by its name in our table, and numbers for it."""

    name: Name = "fedavg"
    params: dict[str, Number] = Field(default_factory=dict, max_length=32)

    @field_validator("params")
    @classmethod
    def _in_order(cls, value: dict[str, Number]) -> dict[str, Number]:
        return dict(sorted(value.items()))


def _minimum_fits(participants: Participants) -> Iterator[Fault]:
    if participants.minimum > participants.maximum:
        yield Fault(
            "minimum",
            f"must not exceed maximum ({participants.maximum}), got {participants.minimum}",
            "lower it, or raise maximum",
        )


class Participants(Section):
    """Who takes part in a round, and when it ends. Members are devices, or above them regions.

    Attributes:
        minimum: Members that must have checked in before a round starts.
        maximum: Members that take part at most; further ones stand by as replacements.
        fraction: Share of those taking part that is selected for a round.
        quorum: Share of the selected whose replies close a round at its deadline.
        deadline_s: Seconds for one round's training, and for gathering.
    """

    minimum: Positive = 2
    maximum: Positive = 100
    fraction: Fraction = 1.0
    quorum: Fraction = 0.8
    deadline_s: Annotated[float, Field(strict=True, gt=0, le=LONGEST_DEADLINE_S, allow_inf_nan=False)] = 120.0

    rules: ClassVar = (Rule(("minimum", "maximum"), _minimum_fits),)


def _only_what_aggregates(apart: RegionAggregation) -> Iterator[Fault]:
    if apart.tier == "regional":
        return
    for name in ("regional_rounds", "participants"):
        if getattr(apart, name) is not None:
            yield Fault(
                name,
                "is for a region of tier regional, and this one is central",
                "remove it, or set the region's tier to regional",
            )


class RegionAggregation(Section):
    """One region set apart from the others. What it leaves out is as for all regions."""

    tier: Tier
    regional_rounds: _Rounds | None = None
    participants: Participants | None = None

    rules: ClassVar = (Rule(("tier", "regional_rounds", "participants"), _only_what_aggregates),)


class Aggregation(Section):
    """Where updates are averaged.

    Attributes:
        participants: Counts members at the centre, where any region aggregates.
        strategy: The regions' own, in place of what follows from the task's.
    """

    tier: Tier = "central"
    regional_rounds: _Rounds = 1
    participants: Participants | None = None
    strategy: Strategy | None = None
    regions: dict[RegionName, RegionAggregation] = Field(default_factory=dict)

    @field_validator("regions")
    @classmethod
    def _in_order(cls, value: dict[str, RegionAggregation]) -> dict[str, RegionAggregation]:
        return dict(sorted(value.items()))
