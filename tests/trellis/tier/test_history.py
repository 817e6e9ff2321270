"""The finished rounds of a task, read from the end of their file."""

from __future__ import annotations

from pathlib import Path

import pytest

from trellis.flower.backchannel import RoundRecord
from trellis.tier.history import append_round, read_last_round, read_rounds

WIDE = {f"metric-{number}": 0.5 for number in range(10_000)}
"""Makes a line of 190,000 bytes: three chunks."""


@pytest.mark.parametrize("metrics", [{}, WIDE])
def test_the_last_round_is_read_whatever_stands_before_it(tmp_path: Path, metrics: dict[str, float]) -> None:
    path = tmp_path / "metrics.jsonl"
    rounds = [RoundRecord(round=number, loss=1 / number, metrics=metrics) for number in (1, 2, 3)]
    for number, record in enumerate(rounds, start=1):
        append_round(path, record)
        assert read_last_round(path, 9) == record
        assert read_last_round(path, number - 1) == (rounds[number - 2] if number > 1 else None)
    assert read_rounds(path) == rounds


def test_a_torn_line_at_the_end_and_no_line_at_all_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert read_last_round(path, 9) is None
    path.touch()
    assert read_last_round(path, 9) is None
    append_round(path, RoundRecord(round=1))
    with path.open("ab") as file:
        file.write(b'{"round": 2, "lo')
    found = read_last_round(path, 9)
    assert found is not None
    assert found.round == 1


def test_of_a_round_done_again_the_last_counts(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    for number, loss in ((1, 0.9), (2, 0.8), (2, 0.4)):
        append_round(path, RoundRecord(round=number, loss=loss))
    found = read_last_round(path, 2)
    assert found is not None
    assert found.loss == 0.4
