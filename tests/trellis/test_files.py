"""Files that are replaced whole, whatever happens to whoever writes them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from trellis.files import append_line, replacing, write_atomically


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "state.json"
    path.write_bytes(b"old")
    return path


def test_a_file_is_replaced_at_the_end_of_the_block_and_not_before(path: Path) -> None:
    with replacing(path) as file:
        file.write(b"ne")
        file.write(b"w")
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert list(path.parent.iterdir()) == [path]


def test_an_error_leaves_what_was_there_and_nothing_else(path: Path) -> None:
    def fill() -> None:
        with replacing(path) as file:
            file.write(b"half")
            raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        fill()
    assert path.read_bytes() == b"old"
    assert list(path.parent.iterdir()) == [path]


def test_what_a_kill_left_is_replaced_and_a_link_in_its_place_is_not_followed(path: Path) -> None:
    partial = path.with_name(".state.json.partial")
    partial.write_bytes(b"a longer half than the next")
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    theirs = path.with_name("theirs")
    theirs.write_bytes(b"theirs")
    partial.symlink_to(theirs)
    write_atomically(path, b"newer")
    assert (path.read_bytes(), theirs.read_bytes()) == (b"newer", b"theirs")
    assert not path.is_symlink()


@pytest.mark.parametrize(
    ("umask", "mode", "due"), [(0o077, 0o644, 0o644), (0, 0o600, 0o600), (0o077, None, 0o600)]
)
def test_permissions_are_those_that_were_asked_for_else_what_the_umask_leaves(
    path: Path, umask: int, mode: int | None, due: int
) -> None:
    before = os.umask(umask)
    try:
        with replacing(path, mode=mode) as file:
            assert os.fstat(file.fileno()).st_mode & 0o777 == due
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == due


def test_a_line_after_a_torn_one_stands_on_its_own(path: Path) -> None:
    append_line(path, b"new")
    append_line(path, b"newer")
    assert path.read_bytes() == b"old\nnew\nnewer\n"
