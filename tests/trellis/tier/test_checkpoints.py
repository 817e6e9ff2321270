"""Checkpoints: read as they were written; a damaged one is passed over for the one before it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.trellis.tier.bad_block import bad_block
from trellis.errors import Damaged
from trellis.tensors import Arrays
from trellis.tier.checkpoints import Checkpoint, Checkpoints


def model(value: float) -> Arrays:
    return {
        "z.weight": np.full((2, 3), value, np.float32),
        "a/b.bias": np.array(value, np.float64),
        "steps": np.array([int(value)], np.int64),
        "view": np.arange(6, dtype=np.float32).reshape(2, 3).T + np.float32(value),
    }


def same(one: Arrays, other: Arrays) -> bool:
    return set(one) == set(other) and all(
        one[name].dtype == other[name].dtype and np.array_equal(one[name], other[name]) for name in one
    )


def found(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def test_without_any_there_is_none(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path).latest() is None


def test_a_checkpoint_reads_back_with_the_strategys_state(tmp_path: Path) -> None:
    moments = {"m_t": model(0.25), "v_t": {"a/b.bias": np.array(2.0)}, "steps": {"000001": np.ones(1)}}
    Checkpoints(tmp_path).write(Checkpoint(7, model(1.5), moments))
    read = Checkpoints(tmp_path).latest()
    assert read is not None
    assert read.round == 7
    assert list(read.arrays) == ["z.weight", "a/b.bias", "steps", "view"], "the model's order"
    assert same(read.arrays, model(1.5))
    assert set(read.strategy) == {"m_t", "v_t", "steps"}
    assert list(read.strategy["m_t"]) == list(model(0)), "there are strategies that go by position"
    assert same(read.strategy["m_t"], moments["m_t"])
    assert same(read.strategy["v_t"], moments["v_t"])


def test_only_the_last_two_are_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    for number in range(1, 5):
        checkpoints.write(Checkpoint(number, model(number)))
    assert found(tmp_path) == ["round-0003.safetensors", "round-0004.safetensors"]


def test_round_10000_comes_after_round_9999(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    for number in (9998, 9999, 10_000, 10_001):
        checkpoints.write(Checkpoint(number, model(number)))
        newest = checkpoints.latest()
        assert newest is not None
        assert newest.round == number
    assert found(tmp_path) == ["round-10000.safetensors", "round-10001.safetensors"]


@pytest.mark.parametrize("damage", ["empty", "cut", "garbage", "foreign", "folder"])
def test_a_damaged_newest_is_passed_over_and_said(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.write(Checkpoint(1, model(1)))
    checkpoints.write(Checkpoint(2, model(2)))
    newest = tmp_path / "checkpoints" / "round-0002.safetensors"
    whole = newest.read_bytes()
    match damage:
        case "empty":
            newest.write_bytes(b"")
        case "cut":
            newest.write_bytes(whole[:-1])
        case "garbage":
            newest.write_bytes(b"\xff" * len(whole))
        case "foreign":
            save_file({"w": np.zeros(1)}, newest)
        case "folder":
            newest.unlink()
            newest.mkdir()
    read = checkpoints.latest()
    assert read is not None
    assert read.round == 1
    assert same(read.arrays, model(1))
    assert "round-0002.safetensors cannot be read" in caplog.text


def test_one_with_a_bad_block_is_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    checkpoints = Checkpoints(tmp_path)
    for number in (1, 2):
        checkpoints.write(Checkpoint(number, model(number)))
    with bad_block(tmp_path / "checkpoints" / "round-0002.safetensors"):
        read = checkpoints.latest()
    assert read is not None
    assert read.round == 1
    assert "round-0002.safetensors cannot be read: [Errno 5]" in caplog.text


def test_if_none_of_them_can_be_read_that_is_no_beginning(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    for number in (1, 2):
        checkpoints.write(Checkpoint(number, model(number)))
        (tmp_path / "checkpoints" / f"round-000{number}.safetensors").write_bytes(b"")
    with pytest.raises(Damaged, match=r"round-0002\.safetensors.*round-0001\.safetensors.*higher revision"):
        checkpoints.latest()
    (tmp_path / "checkpoints" / "round-0001.safetensors").unlink()
    (tmp_path / "checkpoints" / "round-0001.safetensors").symlink_to("/proc/self/mem")  # gives nothing
    with pytest.raises(OSError, match=r"round-0001\.safetensors"):
        checkpoints.latest()


def test_what_a_crash_left_half_written_is_no_checkpoint(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.write(Checkpoint(1, model(1)))
    (tmp_path / "checkpoints" / "round-0002.partial").write_bytes(b"half")
    (tmp_path / "checkpoints" / "round-last.safetensors").write_bytes(b"not ours")
    read = checkpoints.latest()
    assert read is not None
    assert read.round == 1
