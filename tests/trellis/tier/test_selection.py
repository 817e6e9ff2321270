"""Selection: a function of seed, round and names."""

from __future__ import annotations

import random

import pytest

from trellis.descriptor_tiers import Participants
from trellis.flower.checkin import Member
from trellis.tier.selection import select

FLEET = [Member(f"eu-1/d{n:02d}", node_id=1000 + n, samples=n) for n in range(10)]
HALF = Participants(minimum=1, fraction=0.5)


def names(
    fleet: list[Member], participants: Participants, seed: int = 42, round_number: int = 1
) -> list[str]:
    return [m.name for m in select(fleet, participants, seed=seed, round_number=round_number)]


def test_all_take_part_by_name() -> None:
    assert names(FLEET[::-1], Participants()) == [member.name for member in FLEET]
    assert names([], Participants()) == []


def test_the_same_names_are_selected_whatever_their_order_and_node_ids() -> None:
    due = names(FLEET, HALF)
    assert due == sorted(due)
    assert len(due) == 5
    shuffled = [Member(m.name, node_id=random.getrandbits(63), samples=1) for m in FLEET]
    for seed in range(5):
        random.Random(seed).shuffle(shuffled)
        assert names(shuffled, HALF) == due


def test_the_selection_is_the_one_that_was_always_drawn() -> None:
    assert [name[-2:] for name in names(FLEET, HALF)] == ["00", "02", "03", "04", "09"]


def test_rounds_and_seeds_select_others() -> None:
    assert len({tuple(names(FLEET, HALF, round_number=n)) for n in range(1, 21)}) > 10
    assert len({tuple(names(FLEET, HALF, seed=n)) for n in range(20)}) > 10


def test_over_many_rounds_everybody_has_a_turn() -> None:
    turns = [name for n in range(1, 201) for name in names(FLEET, HALF, round_number=n)]
    # 200 draws of one in two: 100 each, standard deviation 7.
    assert all(60 < turns.count(member.name) < 140 for member in FLEET)


@pytest.mark.parametrize(
    ("fraction", "here", "due"),
    [(1.0, 10, 10), (0.5, 10, 5), (0.3, 10, 3), (0.29, 10, 2), (0.01, 10, 1), (0.7, 10, 7)],
)
def test_a_fraction_is_rounded_down_but_one_is_always_selected(fraction: float, here: int, due: int) -> None:
    assert len(names(FLEET[:here], Participants(minimum=1, fraction=fraction))) == due


def test_beyond_the_maximum_always_the_same_ones_take_part() -> None:
    four = Participants(minimum=1, maximum=4)
    taking_part = names(FLEET, four)
    assert len(taking_part) == 4
    assert all(names(FLEET, four, round_number=n) == taking_part for n in range(2, 6))
    assert names(FLEET, four, seed=1) != taking_part
    half = Participants(minimum=1, maximum=4, fraction=0.5)
    assert all(set(names(FLEET, half, round_number=n)) < set(taking_part) for n in range(1, 6))
