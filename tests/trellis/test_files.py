"""Files that are replaced whole, whatever happens to whoever writes them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from trellis.errors import ConfigError
from trellis.files import append_line, replacing, writable_file, write_atomically


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


def test_an_option_that_names_a_link_writes_what_the_link_leads_to(path: Path) -> None:
    for to in (path, path.with_name("later")):
        link = path.with_name("link")
        link.symlink_to(to.name)
        write_atomically(writable_file(link, option="-o"), b"new")
        assert link.is_symlink()
        assert to.read_text() == "new"
        link.unlink()
    assert sorted(one.name for one in path.parent.iterdir()) == ["later", "state.json"]


def test_what_is_read_is_not_written(path: Path) -> None:
    link = path.with_name("link")
    link.symlink_to(path.name)
    for one, read in ((path, path), (link, path), (path, link)):
        with pytest.raises(ConfigError, match=f"-o '{one}': is read by the same command: name another one"):
            writable_file(one, option="-o", apart_from=[path.with_name("none"), read])
    other = path.with_name("other")
    assert writable_file(other, option="-o", apart_from=[path, other]) == other  # it is not there yet


def test_links_in_a_circle_and_into_no_folder_are_told(path: Path) -> None:
    link = path.with_name("link")
    link.symlink_to("link")
    with pytest.raises(ConfigError, match="cannot be written: Symlink loop"):
        writable_file(link, option="-o")
    link.unlink()
    link.symlink_to("none/there")
    with pytest.raises(ConfigError, match="none' does not exist"):
        writable_file(link, option="-o")


def test_a_device_takes_what_is_written_and_stays_a_device(path: Path) -> None:
    # A terminal's name in a folder of ours: where a file would take its place, it could.
    leader, follower = os.openpty()
    link = path.with_name("terminal")
    link.symlink_to(os.ttyname(follower))
    try:
        for device in (link, Path(os.ttyname(follower))):
            write_atomically(writable_file(device, option="-o"), b"told")
            assert os.read(leader, 100) == b"told"
            assert device.is_char_device()
        assert link.is_symlink()
        with pytest.raises(ConfigError, match="is no ordinary file"):
            writable_file(link, option="-o", only_files=True)
    finally:
        os.close(leader)
        os.close(follower)


def test_a_pipe_of_the_shell_takes_what_is_written_and_one_with_a_name_is_refused(path: Path) -> None:
    out, into = os.pipe()
    try:
        write_atomically(writable_file(Path(f"/dev/fd/{into}"), option="-o"), b"told")
        assert os.read(out, 100) == b"told"
    finally:
        os.close(out)
        os.close(into)
    os.mkfifo(path.with_name("pipe"))
    with pytest.raises(ConfigError, match="is no ordinary file"):
        writable_file(path.with_name("pipe"), option="-o")


@pytest.mark.parametrize("only_files", [False, True])
def test_our_own_output_into_a_file_goes_on_in_it(path: Path, only_files: bool) -> None:
    code = (
        "import sys; from pathlib import Path; from trellis.files import writable_file, write_atomically\n"
        "print('before', flush=True)\n"
        f"to = writable_file(Path('/proc/self/fd/1'), option='-o', only_files={only_files})\n"
        "write_atomically(to, b'written\\n')\n"
        "print('after')"
    )
    with path.open("ab") as out:
        ran = subprocess.run(
            [sys.executable, "-c", code],
            stdout=out,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    assert ("is no ordinary file" in ran.stderr) == only_files
    assert path.read_text() == ("oldbefore\n" if only_files else "oldbefore\nwritten\nafter\n")
