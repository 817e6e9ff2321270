"""The strategies' table: what a descriptor may name, and what is built of it."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
from flwr.serverapp import strategy as flower
from small_descriptor import SMALL

from trellis.descriptor import TaskDescriptor, parse_mapping
from trellis.errors import DescriptorError
from trellis.tier.strategies import build_strategy, check_strategy
from trellis.tier.strategy_table import STRATEGIES, strategy_names


def task(name: str, **params: Any) -> TaskDescriptor:
    return parse_mapping({**SMALL, "strategy": {"name": name, "params": params}})


def tiers(
    name: str,
    *,
    minimum: int = 2,
    params: dict[str, Any] | None = None,
    participants: dict[str, Any] | None = None,
    **fields: Any,
) -> TaskDescriptor:
    rest = {"strategy": {"name": name, "params": params or {}}}
    rest["participants"] = participants or {"minimum": minimum, "quorum": 1.0}
    return parse_mapping(task("fedavg").model_dump(mode="json", exclude_none=True) | rest | fields)


def tier_faults(name: str, **fields: Any) -> list[str]:
    with pytest.raises(DescriptorError) as caught:
        check_strategy(tiers(name, **fields))
    return [str(fault) for fault in caught.value.faults]


def faults(name: str, **params: Any) -> list[str]:
    with pytest.raises(DescriptorError) as caught:
        check_strategy(task(name, **params))
    return [str(fault) for fault in caught.value.faults]


def test_the_names_that_a_descriptor_may_give() -> None:
    assert set(strategy_names()) == {
        *("fedavg", "fedprox", "fedavgm", "fedadam", "fedyogi", "fedadagrad"),
        *("fedmedian", "fedtrimmedavg", "krum", "multikrum", "bulyan", "qfedavg"),
    }
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
@pytest.mark.parametrize("regional", [False, True])
def test_every_entry_is_sound_and_builds_flowers_class_that_takes_all_nodes(
    name: str, regional: bool
) -> None:
    entry = STRATEGIES[name]
    assert entry.paper
    assert set(entry.bounds) == set(entry.params)
    assert all(low <= entry.params[key] <= high for key, (low, high) in entry.bounds.items())
    if regional and entry.state:
        return
    inside = {"aggregation": {"tier": "regional", "strategy": {"name": name}}} if regional else {}
    built = build_strategy(tiers("fedavg" if regional else name, minimum=9, **inside), regional=regional)
    assert built[1] is entry
    strategy: Any = built[0]
    assert type(strategy) is getattr(flower, entry.flower_class)
    assert (strategy.fraction_train, strategy.fraction_evaluate) == (1.0, 1.0)
    assert (strategy.min_train_nodes, strategy.min_evaluate_nodes, strategy.min_available_nodes) == (1, 1, 1)
    assert all(hasattr(strategy, attribute) for attribute in entry.state)


def test_parameters_reach_flowers_strategy_and_the_rest_keep_their_defaults() -> None:
    adam: Any = build_strategy(task("fedadam", eta=0.02, beta_1=0.5))[0]
    assert (adam.eta, adam.beta_1, adam.beta_2, adam.tau) == (0.02, 0.5, 0.99, 0.001)
    prox: Any = build_strategy(task("fedprox", proximal_mu=1))[0]
    assert prox.proximal_mu == 1


def test_the_defaults_are_flowers_but_for_those_with_which_it_would_be_another_strategy() -> None:
    ours = {
        (name, key): value
        for name, entry in STRATEGIES.items()
        for key, value in entry.params.items()
        if inspect.signature(getattr(flower, entry.flower_class)).parameters[key].default != value
    }
    assert ours == {
        ("fedprox", "proximal_mu"): 0.01,  # 0 is fedavg
        ("fedavgm", "server_momentum"): 0.9,  # 0 is fedavg
        ("krum", "num_malicious_nodes"): 1,  # 0 withstands nobody
        ("multikrum", "num_malicious_nodes"): 1,
        ("multikrum", "num_nodes_to_select"): 2,  # 1 is krum
        ("bulyan", "num_malicious_nodes"): 1,
    }


def test_qfedavg_takes_its_lipschitz_constant_from_the_devices_learning_rate() -> None:
    fair: Any = build_strategy(task("qfedavg", q=2))[0]
    assert (fair.q, fair.client_learning_rate, fair.train_loss_key) == (2, 0.1, "train_loss")


def test_counts_are_whole_numbers() -> None:
    assert faults("krum", num_malicious_nodes=0.5) == [
        "strategy.params.num_malicious_nodes: must be a whole number from 0 to 1,000,000, got 0.5"
    ]
    build_strategy(tiers("krum", minimum=3, params={"num_malicious_nodes": 0.0}))


@pytest.mark.parametrize(
    ("name", "params", "updates"),
    [
        ("krum", {}, 5),  # 2 * 1 + 3
        ("krum", {"num_malicious_nodes": 3}, 9),
        ("multikrum", {}, 5),  # 1 + 2 + max(2, 2)
        ("multikrum", {"num_nodes_to_select": 4}, 7),  # 1 + 2 + max(2, 4)
        ("bulyan", {}, 7),  # 4 * 1 + 3
        ("fedtrimmedavg", {}, 5),  # 0.2 * 5 is one at either end
        ("fedtrimmedavg", {"beta": 0.3}, 4),  # 0.3 * 3 is none
        ("fedtrimmedavg", {"beta": 0}, 1),  # trims nobody because it was told so
        ("fedmedian", {}, 1),
        ("fedavg", {}, 1),
    ],
)
def test_a_strategy_that_needs_so_many_updates_is_refused_a_round_that_may_close_with_fewer(
    name: str, params: dict[str, Any], updates: int
) -> None:
    check_strategy(tiers(name, minimum=updates, params=params))
    if updates > 1:
        (fault,) = tier_faults(name, minimum=updates - 1, params=params)
        assert fault.startswith(f"participants.minimum: {name!r} with ")
        assert f" needs {updates} updates in a round (" in fault
        assert f"one of {updates - 1} members may close with {updates - 1}" in fault
        assert f"(give a minimum of at least {updates}, or other parameters)" in fault


def test_quorum_and_fraction_count_and_the_fault_names_the_minimum_that_would_do() -> None:
    participants = {"minimum": 7, "quorum": 0.8, "fraction": 0.5}
    (fault,) = tier_faults("bulyan", participants=participants)
    assert fault == (
        "participants.minimum: 'bulyan' with num_malicious_nodes 1 needs 7 updates in a round "
        "(4 · num_malicious_nodes + 3), and one of 7 members may close with 3: fraction 0.5 and quorum 0.8 "
        # 16 members, 8 selected, ceil(6.4) = 7 replies
        "of them (give a minimum of at least 16, or other parameters)"
    )
    check_strategy(tiers("bulyan", participants=participants | {"minimum": 16}))
    assert len(tier_faults("bulyan", participants=participants | {"minimum": 15})) == 1
