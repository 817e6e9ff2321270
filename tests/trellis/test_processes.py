"""Process trees: nothing of them is left, and nobody else is hit."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from trellis.processes import PidFile, die_with_parent, terminate_tree

# A parent that ignores SIGTERM or not, with a child of the same kind; prints the child's pid.
TREE = """
import signal, subprocess, sys, time
if sys.argv[1] == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if len(sys.argv) == 2:
    print(subprocess.Popen([sys.executable, "-c", sys.stdin.read(), sys.argv[1], "leaf"]).pid, flush=True)
time.sleep(60)
"""


@contextlib.contextmanager
def tree(kind: str) -> Iterator[tuple[subprocess.Popen[str], psutil.Process]]:
    with subprocess.Popen(
        [sys.executable, "-c", TREE, kind], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as root:
        assert root.stdin is not None
        assert root.stdout is not None
        root.stdin.write(TREE)
        root.stdin.close()
        leaf = psutil.Process(int(root.stdout.readline()))
        try:
            yield root, leaf
        finally:
            root.kill()
            with contextlib.suppress(psutil.NoSuchProcess):
                leaf.kill()


def ended(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.mark.parametrize("kind", ["polite", "deaf"])
def test_nothing_of_a_tree_is_left(kind: str) -> None:
    with tree(kind) as (root, leaf):
        terminate_tree(root.pid, grace_s=30 if kind == "polite" else 0.5)
        assert ended(leaf)
        # -15 and -9: the exit status is still there for whoever started it.
        assert root.wait(timeout=30) == (-15 if kind == "polite" else -9)


def test_a_process_that_is_gone_is_no_error() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    terminate_tree(process.pid)


def test_what_a_predecessor_left_is_ended(tmp_path: Path) -> None:
    file = PidFile(tmp_path / "state" / "child.pid")
    with tree("polite") as (root, leaf):
        file.write(root.pid)
        assert PidFile(file.path).end_previous()
        assert ended(leaf)
        assert root.wait(timeout=30) == -15
        assert not file.path.exists()
    assert not file.end_previous()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="boot and ticks are Linux's")
def test_a_reused_pid_is_not_hit(tmp_path: Path) -> None:
    file = PidFile(tmp_path / "child.pid")
    with tree("polite") as (root, _):
        file.write(root.pid)
        noted = json.loads(file.path.read_text(encoding="utf-8"))
        boot, ticks = noted["born"].split()
        for born in (f"{boot} {int(ticks) - 1}", f"{boot[::-1]} {ticks}", ""):
            file.path.write_text(json.dumps({**noted, "born": born}), encoding="utf-8")
            assert not file.end_previous()
            assert root.poll() is None
            assert not file.path.exists()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere psutil's own word is taken")
def test_what_a_predecessor_left_is_ended_though_the_clock_was_set_since(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = PidFile(tmp_path / "child.pid")
    with tree("polite") as (root, _):
        file.write(root.pid)
        booted_s = psutil.boot_time()
        # With the clock the time of the boot is set; it is psutil's measure of a process's start.
        monkeypatch.setattr("psutil._pslinux.boot_time", lambda: booted_s - 3600)
        assert file.end_previous()
        assert root.wait(timeout=30) == -15


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": "x", "born": "1 1"}', '{"pid": 1}'])
def test_a_torn_file_names_nobody(tmp_path: Path, text: str) -> None:
    file = PidFile(tmp_path / "child.pid")
    file.path.write_text(text, encoding="utf-8")
    assert not file.end_previous()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="prctl is Linux's")
def test_a_child_ends_when_its_parent_is_killed() -> None:
    script = (
        "import subprocess, sys, time\n"
        "from trellis.processes import die_with_parent\n"
        "child = [sys.executable, '-c', 'import time; time.sleep(60)']\n"
        "print(subprocess.Popen(child, preexec_fn=die_with_parent).pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    root = str(Path(die_with_parent.__code__.co_filename).parents[1])
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env={"PYTHONPATH": root}
    ) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
    deadline = time.monotonic() + 30
    while not ended(child):
        assert time.monotonic() < deadline
        time.sleep(0.02)
