"""Which strategy runs where, and which combinations are refused."""

from __future__ import annotations

from typing import Any

import pytest
from flwr.serverapp import strategy as flower

from trellis.descriptor import TaskDescriptor, parse_mapping
from trellis.errors import DescriptorError
from trellis.tier.strategies import build_strategy, check_strategy, strategy_of
from trellis.tier.strategy_table import STRATEGIES


def task(name: str, params: dict[str, Any] | None = None, **aggregation: Any) -> TaskDescriptor:
    return parse_mapping(
        {
            "task": "t",
            "regions": ["eu-1", "us-1"],
            "server": {"address": "127.0.0.1:8000"},
            "model": {"name": "lenet5"},
            "data": {"name": "digits", "shape": [1, 8, 8], "classes": 10},
            "train": {"rounds": 3, "learning_rate": 0.1},
            "strategy": {"name": name, "params": params or {}},
            "participants": {"minimum": 10, "quorum": 1.0},
            "aggregation": {"tier": "regional", **aggregation},
        }
    )


def faults(name: str, **aggregation: Any) -> list[str]:
    with pytest.raises(DescriptorError) as caught:
        check_strategy(task(name, **aggregation))
    return [str(fault) for fault in caught.value.faults]


@pytest.mark.parametrize("name", ["fedavgm", "fedadam", "fedyogi", "fedadagrad"])
def test_the_servers_optimiser_works_at_the_top_and_regions_average(name: str) -> None:
    given = task(name)
    assert type(build_strategy(given)[0]) is getattr(flower, STRATEGIES[name].flower_class)
    strategy, entry = build_strategy(given, regional=True)
    assert type(strategy) is flower.FedAvg
    assert entry.sums
    assert not entry.state
    assert strategy_of(given, regional=True).params == {}


def test_fedproxs_term_is_the_devices_in_regions_too() -> None:
    given = task("fedprox", {"proximal_mu": 0.5})
    for regional in (False, True):  # at the centre it is the mean, and of devices that are relayed there too
        strategy: Any = build_strategy(given, regional=regional)[0]
        assert type(strategy) is flower.FedProx
        assert strategy.proximal_mu == 0.5


@pytest.mark.parametrize("name", ["fedmedian", "fedtrimmedavg", "krum", "multikrum", "bulyan"])
def test_a_robust_strategy_runs_in_each_region_and_again_over_regions(name: str) -> None:
    params = {"num_malicious_nodes": 0} if "num_malicious_nodes" in STRATEGIES[name].params else {}
    given = task(name, params, participants={"minimum": 10, "quorum": 1.0}, regional_rounds=5)
    for regional in (False, True):
        strategy: Any = build_strategy(given, regional=regional)[0]
        assert type(strategy) is getattr(flower, STRATEGIES[name].flower_class)
        assert all(getattr(strategy, key) == value for key, value in params.items())


def test_qfedavg_over_regional_means_is_refused_until_the_task_says_what_regions_run() -> None:
    (fault,) = faults("qfedavg")
    assert fault == (
        "strategy.name: 'qfedavg' weighs every device by its own loss, and of a region's devices one mean "
        "comes up: over regional means it is not 'qfedavg' (use tier: central; or name in "
        "aggregation.strategy what regions run, and it weighs regions)"
    )
    assert len(faults("qfedavg", tier="central", regions={"us-1": {"tier": "regional"}})) == 1
    fair = task("qfedavg", strategy={"name": "fedavg"})
    assert type(build_strategy(fair)[0]) is flower.QFedAvg
    assert type(build_strategy(fair, regional=True)[0]) is flower.FedAvg
    check_strategy(task("qfedavg", tier="central"))


def test_another_strategy_may_be_named_for_regions() -> None:
    given = task("fedadam", strategy={"name": "krum", "params": {"num_malicious_nodes": 2}})
    assert type(build_strategy(given)[0]) is flower.FedAdam
    strategy: Any = build_strategy(given, regional=True)[0]
    assert type(strategy) is flower.Krum
    assert strategy.num_malicious_nodes == 2
    inside: Any = build_strategy(task("fedavg", strategy={"name": "qfedavg"}), regional=True)[0]
    assert inside.client_learning_rate == 0.1


def test_what_is_wrong_with_the_regions_strategy_is_said_under_its_own_name() -> None:
    assert faults("fedavgx", strategy={"name": "krumm", "params": {}})[1].startswith(
        "aggregation.strategy.name: 'krumm' is unknown: known are bulyan, "
    )
    assert faults("fedavg", strategy={"name": "fedprox", "params": {"mu": 1}}) == [
        "aggregation.strategy.params.mu: is no parameter of 'fedprox': known are proximal_mu"
    ]


@pytest.mark.parametrize("name", ["fedavgm", "fedadam", "fedyogi", "fedadagrad"])
def test_an_optimiser_of_the_server_is_refused_in_regions(name: str) -> None:
    (fault,) = faults("fedavg", strategy={"name": name})
    assert fault.startswith(f"aggregation.strategy.name: {name!r} is an optimiser of the server, whose state")
    assert fault.endswith("(name it in strategy, where it works once, at the top; regions average for it)")


def test_a_proximal_term_that_no_device_would_be_asked_for_is_refused() -> None:
    (fault,) = faults("fedprox", strategy={"name": "fedavg"})
    assert fault.startswith("aggregation.strategy.name: with 'fedavg' in every region no device is asked for")
    # us-1's devices are the centre's own members, and are asked.
    check_strategy(task("fedprox", strategy={"name": "fedavg"}, regions={"us-1": {"tier": "central"}}))


def test_what_a_strategy_needs_is_counted_at_every_tier_of_its_own() -> None:
    # Over two regions by default; and in each region 10 devices are enough.
    (fault,) = faults("krum")
    assert fault.startswith(
        "aggregation.participants.minimum: 'krum' with num_malicious_nodes 1 needs 5 updates"
    )
    assert "one of 2 members may close with 2" in fault
    check_strategy(task("krum", participants={"minimum": 5, "quorum": 1.0}))
    small = {"us-1": {"tier": "regional", "participants": {"minimum": 3}}}
    (fault,) = faults("fedavg", strategy={"name": "krum"}, regions=small)
    assert fault.startswith("aggregation.regions.us-1.participants.minimum: 'krum'")
    # A fault of all regions is said once.
    assert [
        fault.split(":")[0] for fault in faults("fedavg", strategy={"name": "bulyan", "params": MANY})
    ] == ["participants.minimum"]


MANY = {"num_malicious_nodes": 2}
