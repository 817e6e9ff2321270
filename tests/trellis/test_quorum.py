"""How many are selected, and how many replies close a round."""

from __future__ import annotations

import pytest

from trellis.quorum import quorum_count, selected_count


@pytest.mark.parametrize(
    ("quorum", "slots", "due"),
    [
        (0.8, 10, 8),
        (0.8, 3, 3),
        (0.1, 1, 1),
        (0.1, 3, 1),
        (1.0, 7, 7),
        (0.5, 4, 2),
        (0.5, 5, 3),
        (0.7, 10, 7),  # 0.7 * 10 is 7.000000000000001 in some orders of multiplication
        (0.28, 25, 7),  # 0.28 * 25 is 7.000000000000001
        (0.01, 100, 1),
        (1e-9, 5, 1),
    ],
)
def test_a_quorum_is_rounded_up_whatever_floats_make_of_it(quorum: float, slots: int, due: int) -> None:
    assert quorum_count(quorum, slots) == due


@pytest.mark.parametrize(
    ("fraction", "members", "due"),
    [
        (1.0, 7, 7),
        (0.5, 5, 2),
        (0.1, 3, 1),
        (0.29, 100, 29),
        (1e-9, 5, 1),
    ],  # 0.29 * 100 is 28.999999999999996
)
def test_a_fraction_is_rounded_down_whatever_floats_make_of_it(
    fraction: float, members: int, due: int
) -> None:
    assert selected_count(fraction, members) == due
