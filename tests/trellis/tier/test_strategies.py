"""The strategies' table: what a descriptor may name, and what is built of it."""

from __future__ import annotations

from typing import Any

import pytest
from flwr.serverapp import strategy as flower

from trellis.descriptor import TaskDescriptor, parse_mapping
from trellis.errors import DescriptorError
from trellis.tier.strategies import STRATEGIES, build_strategy, check_strategy, strategy_names


def task(name: str, **params: Any) -> TaskDescriptor:
    return parse_mapping(
        {
            "task": "t",
            "regions": ["eu-1"],
            "server": {"address": "127.0.0.1:8000"},
            "model": {"name": "lenet5"},
            "data": {"name": "digits", "shape": [1, 8, 8], "classes": 10},
            "train": {"rounds": 3, "learning_rate": 0.1},
            "strategy": {"name": name, "params": params},
        }
    )


def faults(name: str, **params: Any) -> list[str]:
    with pytest.raises(DescriptorError) as caught:
        check_strategy(task(name, **params))
    return [str(fault) for fault in caught.value.faults]


def test_the_names_that_a_descriptor_may_give() -> None:
    assert set(strategy_names()) >= {"fedavg", "fedprox", "fedadam"}
    assert strategy_names() == sorted(strategy_names())


def test_an_unknown_strategy_lists_the_known_and_suggests_the_nearest() -> None:
    (fault,) = faults("fedadm")
    known = ", ".join(strategy_names())
    assert fault.startswith(f"strategy.name: 'fedadm' is unknown: known are {known}; did you mean 'fed")
    (fault,) = faults("zzz")
    assert fault == f"strategy.name: 'zzz' is unknown: known are {known}"


def test_every_unknown_or_unfit_parameter_is_named_at_once() -> None:
    assert faults("fedadam", beta1=0.9, eta=0, tau=True, beta_2=1) == [
        "strategy.params.beta1: is no parameter of 'fedadam': known are eta, eta_l, beta_1, beta_2, tau; "
        "did you mean 'beta_1'?",
        "strategy.params.beta_2: must be a number from 0 to 0.999999, got 1",
        "strategy.params.eta: must be a number from 1e-12 to 1e+06, got 0",
        "strategy.params.tau: must be a number from 1e-12 to 1e+06, got True",
    ]
    assert faults("fedavg", mu=1) == ["strategy.params.mu: is no parameter of 'fedavg': known are none"]
    assert faults("fedprox", proximal_mu=-0.1) == [
        "strategy.params.proximal_mu: must be a number from 0 to 1e+06, got -0.1"
    ]


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_every_entry_is_sound_and_builds_flowers_class_that_takes_all_nodes(name: str) -> None:
    entry = STRATEGIES[name]
    assert entry.paper
    assert set(entry.bounds) == set(entry.params)
    assert all(low <= entry.params[key] <= high for key, (low, high) in entry.bounds.items())
    strategy, built = build_strategy(task(name))
    assert built is entry
    assert type(strategy) is getattr(flower, entry.flower_class)
    shown: Any = strategy
    assert (shown.fraction_train, shown.fraction_evaluate) == (1.0, 1.0)
    assert (shown.min_train_nodes, shown.min_evaluate_nodes, shown.min_available_nodes) == (1, 1, 1)
    assert all(hasattr(strategy, attribute) for attribute in entry.state)


def test_parameters_reach_flowers_strategy_and_the_rest_keep_their_defaults() -> None:
    adam: Any = build_strategy(task("fedadam", eta=0.02, beta_1=0.5))[0]
    assert (adam.eta, adam.beta_1, adam.beta_2, adam.tau) == (0.02, 0.5, 0.99, 0.001)
    prox: Any = build_strategy(task("fedprox", proximal_mu=1))[0]
    assert prox.proximal_mu == 1
