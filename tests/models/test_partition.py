"""Partitions: disjoint, complete, and a function of the seed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.datasets import Dataset
from models.datasets.partition import FEWEST, parse_partition, partition
from trellis.errors import ConfigError, DataError

SPLITS = st.one_of(st.just("iid"), st.floats(0.001, 1e6).map(lambda alpha: f"dirichlet:{alpha}"))


def _numbered(labels: list[int]) -> Dataset:
    """A data set whose sample i is the number i, so that a part shows which samples it holds."""
    x = np.arange(len(labels), dtype=np.float32).reshape(-1, 1)
    return Dataset("numbered", x, np.array(labels, dtype=np.int64), 5)


@settings(max_examples=150, deadline=None)
@given(
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=200),
    parts=st.integers(1, 12),
    split=SPLITS,
    seed=st.integers(0, 2**63 - 1),
)
def test_parts_are_disjoint_and_complete_and_none_is_starved(
    labels: list[int], parts: int, split: str, seed: int
) -> None:
    whole = _numbered(labels)
    parts = min(parts, len(whole))
    pieces = [partition(whole, index, parts, split=split, seed=seed) for index in range(parts)]
    held = [int(sample) for piece in pieces for sample in piece.x[:, 0]]
    assert sorted(held) == list(range(len(whole)))
    assert min(len(piece) for piece in pieces) >= min(FEWEST, len(whole) // parts)
    for piece in pieces:
        assert piece.y.tolist() == [labels[int(sample)] for sample in piece.x[:, 0]]
        assert (piece.name, piece.classes) == ("numbered", 5)


@given(split=SPLITS, seed=st.integers(0, 2**63 - 1), index=st.integers(0, 2))
@settings(max_examples=30, deadline=None)
def test_a_part_follows_from_the_seed(split: str, seed: int, index: int) -> None:
    whole = _numbered([0, 1, 2, 3, 4] * 20)
    first, second = (partition(whole, index, 3, split=split, seed=seed) for _ in range(2))
    assert np.array_equal(first.x, second.x)


@pytest.mark.parametrize(
    ("split", "last"),
    [("iid", [1, 7, 12, 14]), ("classes", [1, 4, 6, 16, 21]), ("dirichlet:0.3", [3, 7, 8, 23])],
)
def test_a_part_stays_the_same_from_version_to_version(split: str, last: list[int]) -> None:
    whole = _numbered([(0, 0, 0, 0, 0, 2, 2, 2, 2, 2, 4, 4)[number * 5 % 12] for number in range(24)])
    assert partition(whole, 4, 5, split=split, seed=1).x[:, 0].tolist() == last


@pytest.mark.parametrize("split", ["iid", "dirichlet:0.3"])
def test_another_seed_gives_another_part(split: str) -> None:
    whole = _numbered([0, 1, 2, 3, 4] * 20)
    one, other = (partition(whole, 0, 3, split=split, seed=seed) for seed in (1, 2))
    assert one.x.tolist() != other.x.tolist()


def test_a_low_alpha_makes_the_classes_uneven_and_a_high_one_even() -> None:
    whole = _numbered([0, 1, 2, 3, 4] * 200)

    def largest_share(split: str) -> float:
        part = partition(whole, 0, 4, split=split, seed=3)
        return float(np.bincount(part.y, minlength=5).max() / len(part))

    assert largest_share("dirichlet:100000") < 0.23  # one fifth each
    assert largest_share("dirichlet:0.05") > 0.4


def test_by_classes_every_part_has_one_and_as_many_in_a_row_as_there_are_classes_have_all() -> None:
    whole = _numbered([0, 1, 2, 3, 4] * 41)  # 41 samples a class, in 15 parts: three share a class
    pieces = [partition(whole, index, 15, split="classes", seed=3) for index in range(15)]
    assert [set(piece.y.tolist()) for piece in pieces] == [{index % 5} for index in range(15)]
    assert [len(piece) for piece in pieces] == [14] * 10 + [13] * 5  # 14 + 14 + 13 = 41
    held = sorted(int(sample) for piece in pieces for sample in piece.x[:, 0])
    assert held == list(range(len(whole)))
    other = partition(whole, 0, 15, split="classes", seed=4)
    assert other.x.tolist() != pieces[0].x.tolist()


def test_by_classes_fewer_parts_than_classes_have_several_each() -> None:
    pieces = [
        partition(_numbered([0, 1, 2, 3, 4] * 3), index, 2, split="classes", seed=0) for index in (0, 1)
    ]
    assert [sorted(set(piece.y.tolist())) for piece in pieces] == [[0, 2, 4], [1, 3]]
    assert [len(piece) for piece in pieces] == [9, 6]


def test_by_classes_a_class_with_too_few_samples_for_its_parts_is_refused() -> None:
    with pytest.raises(
        DataError, match="data set 'numbered': holds 1 samples of class 1, too few for the 2 parts of it"
    ):
        partition(_numbered([0, 0, 0, 0, 1]), 0, 4, split="classes", seed=0)


def test_iid_parts_differ_by_one_at_most() -> None:
    sizes = [len(partition(_numbered([0] * 10), index, 3, split="iid", seed=0)) for index in range(3)]
    assert sizes == [4, 3, 3]


def test_more_parts_than_samples_is_refused() -> None:
    with pytest.raises(DataError, match="data set 'numbered': holds 2 samples, too few for 3 parts"):
        partition(_numbered([0, 1]), 0, 3, split="iid", seed=0)


def test_a_partition_is_read_from_index_and_parts() -> None:
    assert parse_partition("0/3") == (0, 3)
    assert parse_partition("11/12") == (11, 12)


@pytest.mark.parametrize(
    "text", ["", "1", "a/b", "1/3/5", "-1/3", "1.0/3", " 0/3", "0/3\n", "٠/٣", "9999999/9999999"]
)
def test_what_is_no_partition_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_partition(text)
    assert str(caught.value) == f"options: partition: {text!r} came, INDEX/PARTS is due (such as 0/3)"


@pytest.mark.parametrize("text", ["3/3", "0/0", "5/2"])
def test_a_part_that_is_not_there_is_refused(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_partition(text)
    assert str(caught.value) == (
        f"options: partition: '{text}' came, an index from 0 to below the number of parts is due "
        "(the first of three is 0/3, the last 2/3)"
    )


@pytest.mark.parametrize(
    "split",
    ["", "IID", "dirichlet", "dirichlet:", "dirichlet:x", "dirichlet:0", "dirichlet:nan", "dirichlet:inf"],
)
def test_what_is_no_split_is_refused_with_an_example(split: str) -> None:
    with pytest.raises(ConfigError) as caught:
        partition(_numbered([0, 1]), 0, 1, split=split, seed=0)
    assert str(caught.value) == (
        f"options: split: {split!r} came, iid, classes or dirichlet:ALPHA is due "
        "(such as dirichlet:0.3; ALPHA from 0.001 to 1e+06, the lower the more uneven)"
    )
