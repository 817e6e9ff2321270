"""Where numbers stand on the report's charts, whatever numbers they are."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from central_server.report.axes import Rounds, Values, plain, thinned


@pytest.mark.parametrize(
    ("values", "ticks"),
    [
        ([0.12, 2.3], ["0", "1", "2", "3"]),
        ([0.5, 2.07], ["0.5", "1.0", "1.5", "2.0", "2.5"]),
        ([0.97, 0.985], ["0.970", "0.975", "0.980", "0.985"]),
        ([1.0, 1.0], ["0.90", "0.95", "1.00", "1.05", "1.10"]),  # a tenth to either side
        ([-3.0, 5.0], ["-4", "-2", "0", "2", "4", "6"]),
        ([0.0, 2e12], ["0", "5e+11", "1e+12", "1.5e+12", "2e+12"]),
    ],
)
def test_a_curves_ticks_are_round_numbers_around_its_values(values: list[float], ticks: list[str]) -> None:
    axis = Values.around(values)
    assert [plain(tick, axis.step) for tick in axis.ticks] == ticks


def test_shares_never_pass_their_ends() -> None:
    axis = Values.around([1.0, 1.0], lowest=0.0, highest=1.0)
    assert (axis.ticks[0], axis.ticks[-1]) == (pytest.approx(0.9), pytest.approx(1.0))


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=20))
def test_whatever_is_said_to_be_a_share_stands_between_their_ends(values: list[float]) -> None:
    axis = Values.around(values, lowest=0.0, highest=1.0)
    assert 2 <= len(axis.ticks) <= 8
    assert -1e-9 <= axis.ticks[0] < axis.ticks[-1] <= 1 + 1e-9
    assert all(0 <= axis.y(value) <= 100 for value in values)


@pytest.mark.parametrize(("high", "ticks"), [(0, [0, 1]), (1, [0, 1]), (3, [0, 1, 2, 3]), (10, [0, 5, 10])])
def test_counts_have_whole_ticks(high: int, ticks: list[int]) -> None:
    assert list(Values.from_zero([0.0, high], whole=True).ticks) == ticks


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=20))
def test_any_values_stand_on_the_chart(values: list[float]) -> None:
    for axis in (Values.around(values), Values.from_zero([abs(value) for value in values])):
        assert 2 <= len(axis.ticks) <= 8
        assert all(0 <= axis.y(value) <= 100 for value in values)
        assert all(plain(tick, axis.step) for tick in axis.ticks)


@pytest.mark.parametrize(
    ("last", "ticks"),
    [
        (1, [1]),
        (3, [1, 2, 3]),
        (12, [5, 10]),
        (200, [50, 100, 150, 200]),
        (100_000, [20_000 * n for n in range(1, 6)]),
    ],
)
def test_a_telephone_has_room_for_the_rounds_that_are_named(last: int, ticks: list[int]) -> None:
    assert Rounds(1, last).ticks() == ticks


def test_the_last_round_is_drawn_however_many_there_are() -> None:
    kept, every = thinned(range(1, 1001), 400)
    assert (every, len(kept), 1 in kept, 1000 in kept) == (3, 334, True, True)
    assert thinned([4], 400) == ({4}, 1)
