"""The table of strategies that a task may name: Flower's classes, with what a tier must know of each.

Selection, minimum and fraction are the task's own (`participants:`), so that they are reproducible and know
who is alive: every strategy takes all nodes that the grid shows it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from trellis.descriptor import TaskDescriptor

Number = float | int | bool
Kind = Literal["sums", "robust", "fair"]
Form = Literal["arrays", "record", "list"]
"""How a strategy holds arrays: by name, as Flower's ArrayRecord, or in the order of the model's tensors."""


def _always_one(_: Mapping[str, Number]) -> int:
    return 1


@dataclass(frozen=True)
class Entry:
    """One strategy.

    Attributes:
        flower_class: Its name in `flwr.serverapp.strategy`.
        paper: Where it comes from.
        params: Its parameters with their defaults: Flower's own, but for those with which it would be another
            strategy. One whose default is an integer takes only integers.
        bounds: Allowed closed range of each parameter.
        kind: `sums`: a function of Σ wᵢ·xᵢ and Σ wᵢ, so that updates are folded as they arrive. `robust`:
            chooses among single updates, whatever their weights. `fair`: weighs single updates by their loss.
        state: Attributes that hold arrays from one round to the next; checkpoints keep them. Only an
            optimiser of the server has such.
        asks: What is asked of members in every train message.
        due: Metrics, none of them negative, without which an update is dropped.
        from_task: Arguments that follow from the task.
        fewest: The least number of updates that it can aggregate, by its parameters.
        fewest_rule: The same for people.
    """

    flower_class: str
    paper: str
    params: Mapping[str, Number]
    bounds: Mapping[str, tuple[float, float]]
    kind: Kind = "sums"
    state: Mapping[str, Form] = field(default_factory=dict)
    asks: Mapping[str, bool] = field(default_factory=dict)
    due: tuple[str, ...] = ()
    from_task: Mapping[str, Callable[[TaskDescriptor], Number]] = field(default_factory=dict)
    fewest: Callable[[Mapping[str, Number]], int] = _always_one
    fewest_rule: str = "1"

    @property
    def sums(self) -> bool:
        """Whether updates may be folded into their weighted mean as they arrive."""
        return self.kind == "sums"

    @property
    def in_regions(self) -> Literal["itself", "fedavg", "named"]:
        """What regions run under it: itself, their mean, or what a task must name."""
        if self.kind == "fair":
            return "named"
        return "fedavg" if self.state else "itself"


_UNIT = (0.0, 0.999999)
_POSITIVE = (1e-12, 1e6)
_COUNT = (0, 1_000_000)


def _fedopt(paper: str, flower_class: str, params: Mapping[str, Number], *state: str) -> Entry:
    bounds = {key: _UNIT if key.startswith("beta") else _POSITIVE for key in params}
    return Entry(flower_class, paper, params, bounds, state=dict.fromkeys(state, "arrays"))


def _whole(params: Mapping[str, Number], key: str) -> int:
    return int(params[key])


def _trims(params: Mapping[str, Number]) -> int:
    """The least number of updates of which the trimmed mean leaves any out at either end."""
    beta = float(params["beta"])
    if beta == 0:
        return 1
    count = math.floor(1 / beta)
    return count if int(beta * count) >= 1 else count + 1


STRATEGIES: Mapping[str, Entry] = {
    "fedavg": Entry("FedAvg", "McMahan et al. 2017, Algorithm 1", {}, {}),
    "fedprox": Entry(
        "FedProx", "Li et al. 2020, Algorithm 2", {"proximal_mu": 0.01}, {"proximal_mu": (0.0, 1e6)}
    ),
    "fedavgm": Entry(
        "FedAvgM",
        "Hsu et al. 2019",
        {"server_learning_rate": 1.0, "server_momentum": 0.9},
        {"server_learning_rate": _POSITIVE, "server_momentum": _UNIT},
        state={"current_arrays": "record", "momentum_vector": "list"},
    ),
    "fedadagrad": _fedopt(
        "Reddi et al. 2021, Algorithm 2",
        "FedAdagrad",
        {"eta": 0.1, "eta_l": 0.1, "tau": 0.001},
        "v_t",  # its m_t is this round's step alone: Flower's beta_1 is 0
    ),
    "fedadam": _fedopt(
        "Reddi et al. 2021, Algorithm 2",
        "FedAdam",
        {"eta": 0.1, "eta_l": 0.1, "beta_1": 0.9, "beta_2": 0.99, "tau": 0.001},
        "m_t",
        "v_t",
    ),
    "fedyogi": _fedopt(
        "Reddi et al. 2021, Algorithm 2",
        "FedYogi",
        {"eta": 0.01, "eta_l": 0.0316, "beta_1": 0.9, "beta_2": 0.99, "tau": 0.001},
        "m_t",
        "v_t",
    ),
    "fedmedian": Entry("FedMedian", "Yin et al. 2018, Algorithm 1, option I", {}, {}, "robust"),
    "fedtrimmedavg": Entry(
        "FedTrimmedAvg",
        "Yin et al. 2018, Algorithm 1, option II",
        {"beta": 0.2},
        {"beta": (0.0, 0.499999)},
        "robust",
        fewest=_trims,
        fewest_rule="1 / beta",
    ),
    "krum": Entry(
        "Krum",
        "Blanchard et al. 2017",
        {"num_malicious_nodes": 1},
        {"num_malicious_nodes": _COUNT},
        "robust",
        fewest=lambda params: 2 * _whole(params, "num_malicious_nodes") + 3,
        fewest_rule="2 · num_malicious_nodes + 3",
    ),
    "multikrum": Entry(
        "MultiKrum",
        "Blanchard et al. 2017",
        {"num_malicious_nodes": 1, "num_nodes_to_select": 2},
        {"num_malicious_nodes": _COUNT, "num_nodes_to_select": (1, 1_000_000)},
        "robust",
        fewest=lambda params: (
            _whole(params, "num_malicious_nodes")
            + 2
            + max(_whole(params, "num_malicious_nodes") + 1, _whole(params, "num_nodes_to_select"))
        ),
        fewest_rule="num_malicious_nodes + 2 + max(num_malicious_nodes + 1, num_nodes_to_select)",
    ),
    "bulyan": Entry(
        "Bulyan",
        "El Mhamdi et al. 2018",
        {"num_malicious_nodes": 1},
        {"num_malicious_nodes": _COUNT},
        "robust",
        fewest=lambda params: 4 * _whole(params, "num_malicious_nodes") + 3,
        fewest_rule="4 · num_malicious_nodes + 3",
    ),
    "qfedavg": Entry(
        "QFedAvg",
        "Li et al. 2020 (q-FFL), Algorithm 2",
        {"q": 0.1},
        {"q": (0.0, 100.0)},
        "fair",
        asks={"report-initial-loss": True},
        due=("train_loss",),
        # Its L is 1 / the learning rate of the devices' steps.
        from_task={"client_learning_rate": lambda task: task.train.learning_rate},
    ),
}


def strategy_names() -> list[str]:
    """Return the names that a descriptor may give."""
    return sorted(STRATEGIES)
