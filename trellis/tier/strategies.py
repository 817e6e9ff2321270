"""A task's strategies, at the centre and in its regions: which they are, whether they can be right.

What follows for regions where a task names nothing for them: they average where the server has an optimiser,
which works once, at the top; a robust strategy runs in each region and again over regions; a fair one weighs
single devices, which regional means are not, so a task must name what regions run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

from trellis.descriptor import TaskDescriptor
from trellis.descriptor_rules import Rule
from trellis.descriptor_tiers import Participants, Strategy
from trellis.errors import DescriptorError, Fault
from trellis.nearest import did_you_mean
from trellis.quorum import quorum_count, selected_count
from trellis.tier.strategy_table import STRATEGIES, Entry, Number, strategy_names


def strategy_of(descriptor: TaskDescriptor, *, regional: bool = False) -> Strategy:
    """Return what the centre runs, or a region: the one named for it, or what follows from the centre's."""
    if not regional:
        return descriptor.strategy
    if descriptor.aggregation.strategy is not None:
        return descriptor.aggregation.strategy
    entry = STRATEGIES.get(descriptor.strategy.name)
    return Strategy() if entry is not None and entry.in_regions == "fedavg" else descriptor.strategy


def check_strategy(descriptor: TaskDescriptor) -> Entry:
    """Return the table's entry for the centre's strategy, once it and the regions' are found right.

    Raises:
        DescriptorError: Unknown strategy or parameter (the nearest is suggested), a value out of range, fewer
            participants than a strategy needs, or a combination that cannot be right.
    """
    # A fault of all regions is reported once.
    faults = dict.fromkeys(fault for rule in STRATEGY_RULES for fault in rule.check(descriptor))
    if faults:
        raise DescriptorError("task descriptor", faults)
    return STRATEGIES[descriptor.strategy.name]


def build_strategy(descriptor: TaskDescriptor, *, regional: bool = False) -> tuple[object, Entry]:
    """Return Flower's strategy for a descriptor's centre, or for its regions, and its entry.

    Raises:
        DescriptorError: As `check_strategy`.
    """
    check_strategy(descriptor)
    from flwr.serverapp import strategy as flower  # noqa: PLC0415 - Flower takes a second to import

    chosen = strategy_of(descriptor, regional=regional)
    entry = STRATEGIES[chosen.name]
    build: Callable[..., object] = getattr(flower, entry.flower_class)
    everybody = {"fraction_train": 1.0, "fraction_evaluate": 1.0}
    at_least = {"min_train_nodes": 1, "min_evaluate_nodes": 1, "min_available_nodes": 1}
    derived = {key: follow(descriptor) for key, follow in entry.from_task.items()}
    return build(**everybody, **at_least, **derived, **{**entry.params, **chosen.params}), entry


def _own_faults(field: str, strategy: Strategy) -> Iterator[Fault]:
    """What is wrong with a strategy by itself."""
    entry = STRATEGIES.get(strategy.name)
    if entry is None:
        known = (
            f"known are {', '.join(strategy_names())}{did_you_mean(strategy.name, STRATEGIES, before='; ')}"
        )
        yield Fault(f"{field}.name", f"{strategy.name!r} is unknown: {known}")
        return
    for key, value in strategy.params.items():
        if key not in entry.params:
            known = ", ".join(entry.params) or "none"
            hint = did_you_mean(key, entry.params, before="; ")
            yield Fault(
                f"{field}.params.{key}", f"is no parameter of {strategy.name!r}: known are {known}{hint}"
            )
            continue
        low, high = entry.bounds[key]
        whole = isinstance(entry.params[key], int)
        if isinstance(value, bool) or not low <= value <= high or (whole and not isinstance(value, int)):
            due = (
                f"a whole number from {low:,} to {high:,}" if whole else f"a number from {low:g} to {high:g}"
            )
            yield Fault(f"{field}.params.{key}", f"must be {due}, got {value!r}")


def _named_by_the_task(descriptor: TaskDescriptor) -> Iterator[Fault]:
    yield from _own_faults("strategy", descriptor.strategy)


def _named_for_regions(descriptor: TaskDescriptor) -> Iterator[Fault]:
    if descriptor.aggregation.strategy is not None:
        yield from _own_faults("aggregation.strategy", descriptor.aggregation.strategy)


def _is_known(descriptor: TaskDescriptor) -> bool:
    """Whether each strategy is right by itself, so that they can be looked at together."""
    return not any((*_named_by_the_task(descriptor), *_named_for_regions(descriptor)))


def _tier_faults(descriptor: TaskDescriptor) -> Iterator[Fault]:
    """Which combinations of the centre's strategy and the regions' cannot be right."""
    if not descriptor.has_regions or not _is_known(descriptor):
        return
    name, named = descriptor.strategy.name, descriptor.aggregation.strategy
    if named is None:
        if STRATEGIES[name].in_regions == "named":
            yield Fault(
                "strategy.name",
                f"{name!r} weighs every device by its own loss, and of a region's devices one mean comes up: "
                f"over regional means it is not {name!r}",
                "use tier: central; or name in aggregation.strategy what regions run, and it weighs regions",
            )
        return
    if STRATEGIES[named.name].state:
        yield Fault(
            "aggregation.strategy.name",
            f"{named.name!r} is an optimiser of the server, whose state goes with one model from round to "
            "round, and a region is given another model by every round above it",
            "name it in strategy, where it works once, at the top; regions average for it",
        )
    everyone_below = all(descriptor.tier_of(region) == "regional" for region in descriptor.regions)
    if name == "fedprox" and named.name != "fedprox" and everyone_below:
        yield Fault(
            "aggregation.strategy.name",
            f"with {named.name!r} in every region no device is asked for the proximal term of strategy "
            "'fedprox', which would be 'fedavg'",
            "name fedprox for the regions, or fedavg in strategy",
        )


def _count_faults(descriptor: TaskDescriptor) -> Iterator[Fault]:
    """Where a round may close with fewer updates than its strategy can aggregate."""
    if not _is_known(descriptor):
        return
    above = "aggregation." if descriptor.has_regions else ""
    yield from _too_few(
        f"{above}participants.minimum", descriptor.participants_at("central"), descriptor.strategy
    )
    inside = strategy_of(descriptor, regional=True)
    for region in descriptor.regions:
        if descriptor.tier_of(region) == "regional":
            apart = descriptor.aggregation.regions.get(region)
            own = f"aggregation.regions.{region}." if apart and apart.participants else ""
            yield from _too_few(f"{own}participants.minimum", descriptor.participants_at(region), inside)


def _too_few(field: str, participants: Participants, strategy: Strategy) -> Iterator[Fault]:
    entry = STRATEGIES[strategy.name]
    params: Mapping[str, Number] = {**entry.params, **strategy.params}
    due, found = entry.fewest(params), _fewest_updates(participants, participants.minimum)
    if found >= due:
        return
    said = ", ".join(f"{key} {value}" for key, value in params.items())
    yield Fault(
        field,
        f"{strategy.name!r} with {said} needs {due} updates in a round ({entry.fewest_rule}), and one of "
        f"{participants.minimum} members may close with {found}: fraction {participants.fraction:g} and "
        f"quorum {participants.quorum:g} of them",
        f"give a minimum of at least {_minimum_for(participants, due)}, or other parameters",
    )


def _fewest_updates(participants: Participants, members: int) -> int:
    """Return with how few updates a round of so many members may close."""
    return quorum_count(participants.quorum, selected_count(participants.fraction, members))


def _minimum_for(participants: Participants, updates: int) -> int:
    """Return the least number of members whose rounds close with at least so many updates."""
    slots = math.floor((updates - 1) / participants.quorum) + 1
    members = max(1, math.floor(slots / participants.fraction) - 1)
    while _fewest_updates(participants, members) < updates:
        members += 1
    return members


STRATEGY_RULES = (
    Rule(("strategy",), _named_by_the_task),
    Rule(("aggregation",), _named_for_regions),
    Rule(("strategy", "aggregation", "regions"), _tier_faults, deep=("aggregation",)),
    Rule(
        ("strategy", "aggregation", "regions", "participants"),
        _count_faults,
        deep=("strategy", "aggregation", "participants"),
    ),
)
"""What a task's strategies must be, for whoever reads its descriptor."""
