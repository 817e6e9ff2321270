"""Folding: means by hand, whatever the order, and sums of sums."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trellis.errors import TensorError
from trellis.flower.folding import WeightedMean
from trellis.tensors import Arrays

UPDATES = st.lists(
    st.tuples(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6), st.integers(1, 10**6)), min_size=1, max_size=5
)


def fold(*updates: tuple[Arrays, dict[str, float], float]) -> WeightedMean:
    mean = WeightedMean()
    for update in updates:
        mean.add(*update)
    return mean


def test_the_mean_is_weighted_by_examples() -> None:
    mean = fold(
        ({"w": np.array([1.0, 2.0]), "b": np.array(4.0)}, {"loss": 1.0}, 1),
        ({"w": np.array([5.0, 10.0]), "b": np.array(8.0)}, {"loss": 3.0}, 3),
    )
    # (1·1 + 3·5) / 4 = 4;  (1·2 + 3·10) / 4 = 8;  (1·4 + 3·8) / 4 = 7;  (1·1 + 3·3) / 4 = 2.5
    assert {name: array.tolist() for name, array in mean.arrays().items()} == {"w": [4.0, 8.0], "b": 7.0}
    assert mean.metrics() == {"loss": 2.5}
    assert (mean.weight, mean.updates) == (4.0, 2)


def test_whole_numbers_and_booleans_are_rounded_and_keep_their_dtype() -> None:
    mean = fold(
        ({"n": np.array([1, 2, 0], np.int64), "on": np.array([True, False])}, {}, 1),
        ({"n": np.array([2, 4, -1], np.int64), "on": np.array([True, True])}, {}, 2),
    )
    # 5/3, 10/3, -2/3; 1 and 2/3
    arrays = mean.arrays()
    assert arrays["n"].tolist() == [2, 3, -1]
    assert arrays["on"].tolist() == [True, True]
    assert [str(arrays[name].dtype) for name in ("n", "on")] == ["int64", "bool"]


def test_sums_are_float64_and_the_mean_has_the_updates_dtype() -> None:
    # 2**24 + 1 is no float32: summed in float32 the ones would be lost.
    updates: list[tuple[Arrays, dict[str, float], float]] = [
        ({"w": np.array([value], np.float32)}, {}, 1.0) for value in (2**24, 1, 1, 1, 1)
    ]
    mean = fold(*updates).arrays()["w"]
    assert mean.dtype == np.float32
    assert mean.tolist() == [(2**24 + 4) / 5]


def test_a_metric_that_one_update_lacks_has_no_mean() -> None:
    mean = fold(({}, {"loss": 1.0, "f1": 0.5}, 1), ({}, {"loss": 2.0}, 1), ({}, {"loss": 3.0, "f1": 0.5}, 1))
    assert mean.metrics() == {"loss": 2.0}


@given(UPDATES)
def test_the_order_of_arrival_changes_nothing_beyond_rounding(
    updates: list[tuple[float, float, int]],
) -> None:
    means = []
    for order in itertools.islice(itertools.permutations(updates), 6):
        mean = fold(*(({"w": np.array([a, b])}, {"m": a}, n) for a, b, n in order))
        means.append(np.array([*mean.arrays()["w"], mean.metrics()["m"]]))
    scale = max(1.0, *(abs(x) for a, b, _ in updates for x in (a, b)))
    assert all(np.abs(mean - means[0]).max() <= 1e-12 * scale for mean in means)


@given(UPDATES, UPDATES)
def test_a_mean_of_means_with_summed_weights_is_the_flat_mean(
    here: list[tuple[float, float, int]], there: list[tuple[float, float, int]]
) -> None:
    flat = fold(*(({"w": np.array([a, b])}, {"m": a}, n) for a, b, n in here + there))
    regions = [fold(*(({"w": np.array([a, b])}, {"m": a}, n) for a, b, n in part)) for part in (here, there)]
    nested = fold(*((region.arrays(), region.metrics(), region.weight) for region in regions))
    scale = max(1.0, *(abs(x) for a, b, _ in here + there for x in (a, b)))
    assert nested.weight == flat.weight
    assert np.abs(np.subtract(nested.arrays()["w"], flat.arrays()["w"])).max() <= 1e-12 * scale
    assert abs(nested.metrics()["m"] - flat.metrics()["m"]) <= 1e-12 * scale


@pytest.mark.parametrize("weight", [0, -1, float("nan"), float("inf")])
def test_a_weight_that_is_no_number_of_examples_is_refused(weight: float) -> None:
    with pytest.raises(TensorError, match=r"has weight .*, due is a positive number of examples"):
        fold(({"w": np.zeros(1)}, {}, weight))


@pytest.mark.parametrize(
    "other", [{}, {"v": np.zeros(2)}, {"w": np.zeros(3)}, {"w": np.zeros(2), "v": np.zeros(1)}]
)
def test_other_tensors_than_the_first_updates_are_refused_and_change_nothing(other: Arrays) -> None:
    mean = fold(({"w": np.array([1.0, 2.0])}, {}, 2))
    with pytest.raises(TensorError, match="has other tensors than the round's first update"):
        mean.add(other, {}, 5)
    assert (mean.arrays()["w"].tolist(), mean.weight, mean.updates) == ([1.0, 2.0], 2.0, 1)
