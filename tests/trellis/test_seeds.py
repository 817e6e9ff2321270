"""Seeds: a scope names a stream, everywhere the same one."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from trellis.seeds import generator

# Each line: printf '42\x1fstr:train\x1fstr:cam-7\x1fint:3' | sha256sum, as eight little-endian words into
# SeedSequence and PCG64, whose streams numpy keeps stable.
TRAIN_CAM_7_ROUND_3 = [614342952, 3614778757, 372859576]
NO_SCOPE_0 = [3794230882, 1831323888, 1015479016]

SCOPES = st.lists(st.integers(0, 50) | st.sampled_from(["train", "select", "1", "2"]), max_size=3).map(tuple)


def first(seed: int, *scope: str | int) -> list[int]:
    return [int(n) for n in generator(seed, *scope).integers(0, 2**32, size=3)]


def test_the_streams_are_those_that_were_always_drawn() -> None:
    assert first(42, "train", "cam-7", 3) == TRAIN_CAM_7_ROUND_3
    assert first(0) == NO_SCOPE_0


@given(st.integers(0, 2**63 - 1), SCOPES)
def test_the_same_scope_gives_the_same_stream(seed: int, scope: tuple[str | int, ...]) -> None:
    assert first(seed, *scope) == first(seed, *scope)


@given(st.integers(0, 3), SCOPES, st.integers(0, 3), SCOPES)
def test_other_scopes_give_other_streams(
    seed: int, scope: tuple[str | int, ...], other_seed: int, other: tuple[str | int, ...]
) -> None:
    # Three words of 32 bits: two streams agree by chance once in 2**96.
    same = (seed, scope) == (other_seed, other)
    assert (first(seed, *scope) == first(other_seed, *other)) is same


def test_neighbours_differ() -> None:
    streams = [
        first(seed, "train", device, number) for seed in (1, 2) for device in "ab" for number in (1, 2)
    ]
    assert len({tuple(stream) for stream in streams}) == 8


def test_a_number_is_not_its_text_and_parts_do_not_run_together() -> None:
    assert first(1, "1") != first(1, 1)
    assert first(1, "ab", "c") != first(1, "a", "bc")
    assert first(1, "a") != first(1, "a", "")
    assert first(11) != first(1, 1)
