"""The table that maps a descriptor's strategy to one of Flower's classes.

Selection, minimum and fraction are the task's own (`participants:`), so that they are reproducible and know
who is alive: every strategy takes all nodes that the grid shows it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from trellis.descriptor import TaskDescriptor
from trellis.errors import DescriptorError, Fault
from trellis.nearest import did_you_mean

Number = float | int | bool


@dataclass(frozen=True)
class Entry:
    """One strategy.

    Attributes:
        flower_class: Its name in `flwr.serverapp.strategy`.
        paper: Where it comes from.
        params: Its parameters with their defaults (Flower's own).
        bounds: Allowed closed range of each parameter.
        sums: Whether it is a function of Σ wᵢ·xᵢ and Σ wᵢ: then updates are folded as they arrive.
        state: Attributes that hold named arrays from one round to the next; checkpoints keep them.
    """

    flower_class: str
    paper: str
    params: Mapping[str, Number]
    bounds: Mapping[str, tuple[float, float]]
    sums: bool = True
    state: tuple[str, ...] = ()


_UNIT = (0.0, 0.999999)
_POSITIVE = (1e-12, 1e6)

STRATEGIES: Mapping[str, Entry] = {
    "fedavg": Entry("FedAvg", "McMahan et al. 2017, Algorithm 1", {}, {}),
    "fedprox": Entry(
        "FedProx", "Li et al. 2020, Algorithm 2", {"proximal_mu": 0.01}, {"proximal_mu": (0.0, 1e6)}
    ),
    "fedadam": Entry(
        "FedAdam",
        "Reddi et al. 2021, Algorithm 2",
        {"eta": 0.1, "eta_l": 0.1, "beta_1": 0.9, "beta_2": 0.99, "tau": 0.001},
        {"eta": _POSITIVE, "eta_l": _POSITIVE, "beta_1": _UNIT, "beta_2": _UNIT, "tau": _POSITIVE},
        state=("m_t", "v_t"),
    ),
}


def strategy_names() -> list[str]:
    """Return the names that a descriptor may give."""
    return sorted(STRATEGIES)


def check_strategy(descriptor: TaskDescriptor) -> Entry:
    """Return the table's entry for a descriptor.

    Raises:
        DescriptorError: Unknown strategy or parameter (the nearest is suggested), or a value out of range.
    """
    name, given = descriptor.strategy.name, descriptor.strategy.params
    entry = STRATEGIES.get(name)
    if entry is None:
        known = f"known are {', '.join(strategy_names())}{did_you_mean(name, STRATEGIES, before='; ')}"
        raise DescriptorError("task descriptor", [Fault("strategy.name", f"{name!r} is unknown: {known}")])
    faults = []
    for key, value in given.items():
        field = f"strategy.params.{key}"
        if key not in entry.params:
            known = ", ".join(entry.params) or "none"
            hint = did_you_mean(key, entry.params, before="; ")
            faults.append(Fault(field, f"is no parameter of {name!r}: known are {known}{hint}"))
        else:
            low, high = entry.bounds[key]
            if isinstance(value, bool) or not low <= value <= high:
                faults.append(Fault(field, f"must be a number from {low:g} to {high:g}, got {value!r}"))
    if faults:
        raise DescriptorError("task descriptor", faults)
    return entry


def build_strategy(descriptor: TaskDescriptor) -> tuple[object, Entry]:
    """Return Flower's strategy for a descriptor, and its entry.

    Raises:
        DescriptorError: As `check_strategy`.
    """
    entry = check_strategy(descriptor)
    from flwr.serverapp import strategy as flower  # noqa: PLC0415 - Flower takes a second to import

    build: Callable[..., object] = getattr(flower, entry.flower_class)
    everybody = {"fraction_train": 1.0, "fraction_evaluate": 1.0}
    at_least = {"min_train_nodes": 1, "min_evaluate_nodes": 1, "min_available_nodes": 1}
    return build(**everybody, **at_least, **{**entry.params, **descriptor.strategy.params}), entry
