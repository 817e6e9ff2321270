"""The README's quickstart, word for word, on the ports that it names: in a network namespace of its own."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from pathlib import Path

import psutil
import pytest
from members import command_line
from pages import block, codes, read, rows, section
from safetensors.numpy import load_file

from models.datasets import load
from trellis.processes import terminate_tree

COMMANDS = block(read("README.md"), "quickstart").splitlines()
AFTERWARDS = block(read("README.md"), "afterwards").splitlines()
MARK = "QUICKSTART_UNDER_TEST"
LISTENING = "0A"
READY_S, TASK_S, END_S = 120.0, 180.0, 60.0
WHOLE_S = 380.0
"""All of it, so that pytest's own limit of 400 s never cuts the clearing up short."""

# What a person sees before typing the next command: nothing is started before the last one listens.
PORTS = {"trellis broker": {1883}, "trellis server": {8000, 8080}, "trellis gateway": {8081}}


def not_here(problem: str) -> None:
    if os.environ.get("CI"):
        pytest.fail(f"{problem}, and CI must not skip what needs it")
    pytest.skip(problem)


class Namespace:
    """A network of one's own: nothing but loopback is in it."""

    def __init__(self, folder: Path, mark: str) -> None:
        self.folder = folder
        self.environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("TRELLIS_") and not name.lower().endswith("_proxy")
        }
        self.environment |= {
            MARK: mark,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }
        ours = [] if os.geteuid() == 0 else ["--map-root-user"]
        ip = shutil.which("ip", path=f"{os.environ['PATH']}{os.pathsep}/usr/sbin") or "ip"
        # A shell holds the namespace, and says when loopback is up. Its input ends with this process, however
        # that ends; the shell then kills whatever has the mark but itself, and ends. What it still says then,
        # nobody reads.
        marked = f"grep -lsz '^{MARK}={mark}$' /proc/[0-9]*/environ | cut -d/ -f3 | grep -vx $$"
        held = f"{ip} link set lo up && echo up && read _; kill -9 $({marked}) 2>/dev/null"
        self._holder = subprocess.Popen(
            ["unshare", *ours, "--net", "sh", "-c", held],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self.environment,
            start_new_session=True,  # who ends our group must not end it
        )
        assert self._holder.stdout is not None
        if self._holder.stdout.readline() != "up\n":
            _, said = self._holder.communicate()
            not_here(f"there is no network namespace to be had: {said.strip()}")
        self._enter = ["nsenter", "--target", str(self._holder.pid), "--net"]
        self._enter += ["--user", "--preserve-credentials"] if ours else []

    def start(self, line: str, log: Path) -> subprocess.Popen[bytes]:
        """Type a line in a terminal of its own."""
        with log.open("wb") as file:
            return subprocess.Popen(
                [*self._enter, "bash", "-c", line],
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def ports(self) -> set[int]:
        """The TCP ports on which somebody listens in there."""
        text = Path(f"/proc/{self._holder.pid}/net/tcp").read_text(encoding="ascii")
        lines = [line.split() for line in text.splitlines()[1:]]
        return {int(line[1].rpartition(":")[2], 16) for line in lines if line[3] == LISTENING}

    def close(self) -> None:
        self._holder.kill()
        self._holder.communicate()


def until(holds: Callable[[], bool], what: Callable[[], str], limit_s: float) -> None:
    deadline = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < deadline, f"not within {limit_s:g} s: {what()}"
        time.sleep(0.1)


def marked(mark: str, but: set[int]) -> list[psutil.Process]:
    """Every process that inherited the mark, also one that has lost its parent."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            dead = process.status() == psutil.STATUS_ZOMBIE
            if process.pid not in but and not dead and process.environ().get(MARK) == mark:
                found.append(process)
    return found


class Terminals:
    """The terminals of one quickstart, each with its command."""

    def __init__(self, folder: Path) -> None:
        self.mark = secrets.token_hex(8)
        self.folder, self.logs = folder / "empty", folder / "logs"
        self.folder.mkdir()
        self.logs.mkdir()
        self.namespace = Namespace(self.folder, self.mark)
        self._running: list[tuple[str, subprocess.Popen[bytes]]] = []
        self._end = time.monotonic() + WHOLE_S

    def run(self, line: str, limit_s: float) -> str:
        """Type a line that ends by itself with code 0, and return what it says."""
        log = self._log(line)
        process = self.namespace.start(line, log)
        self._running.append((line, process))
        until(
            lambda: process.poll() is not None, lambda: f"{line} ends\n{self.said()}", self._left_s(limit_s)
        )
        assert process.returncode == 0, f"{line}\n{self.said()}"
        self._running.pop()
        return log.read_text(encoding="utf-8")

    def open(self, line: str, ports: set[int]) -> None:
        """Type a line that goes on, and return once it listens."""
        process = self.namespace.start(line, self._log(line))
        self._running.append((line, process))
        there = self.namespace.ports

        def listens() -> bool:
            assert process.poll() is None, f"{line} ended with {process.returncode}\n{self.said()}"
            return ports <= there()

        until(listens, lambda: f"{line} listens on {sorted(ports)}\n{self.said()}", self._left_s(READY_S))

    def interrupt(self) -> None:
        """Press Ctrl-C in every terminal, the last opened first, and see that everything has gone."""
        while self._running:
            line, process = self._running.pop()
            os.killpg(process.pid, signal.SIGINT)
            process.wait(self._left_s(END_S))
            group = process.pid

            def gone(group: int = group) -> bool:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(group, 0)
                    return False
                return True

            until(gone, lambda line=line: f"Ctrl-C ends {line}\n{self.said()}", self._left_s(END_S))  # type: ignore[misc]

    def left(self) -> list[str]:
        """The command lines of what is left in the namespace beside what holds it."""
        return [command_line(process) for process in self._left()]

    def close(self) -> None:
        for process in self._left():
            terminate_tree(process.pid)
        self.namespace.close()

    def said(self) -> str:
        logs = sorted(self.logs.iterdir())
        return "\n".join(f"--- {log.name}\n{log.read_text(encoding='utf-8')[-1500:]}" for log in logs)

    def _left_s(self, limit_s: float) -> float:
        return max(0.0, min(limit_s, self._end - time.monotonic()))

    def _left(self) -> list[psutil.Process]:
        return marked(self.mark, {self.namespace._holder.pid})

    def _log(self, line: str) -> Path:
        words = "-".join(word for word in line.split() if word.isalpha())
        return self.logs / f"{len(list(self.logs.iterdir()))}-{words}"[:80]


def described(run: Path) -> list[str]:
    """What the README's table of files and a run's folder do not have in common."""
    patterns = [
        pattern.replace("NNNN", "????")
        for row in rows(section(read("README.md"), "What a run leaves behind"))
        for pattern in codes(row[0])
    ]
    found = [str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()]
    strange = [name for name in found if not any(fnmatch(name, pattern) for pattern in patterns)]
    return strange + [pattern for pattern in patterns if not any(fnmatch(name, pattern) for name in found)]


@pytest.fixture
def terminals(tmp_path: Path) -> Iterator[Terminals]:
    for program in ("unshare", "nsenter", "bash"):
        if shutil.which(program) is None:
            not_here(f"{program} is not installed")
    opened = Terminals(tmp_path)
    yield opened
    opened.close()


def test_the_quickstart_has_at_most_six_commands_of_at_most_80_characters() -> None:
    assert 1 <= len(COMMANDS) <= 6
    assert [line for line in COMMANDS if len(line) > 80] == []
    # One command a line: a loop is one, a chain is not.
    assert [line for line in COMMANDS if "&&" in line or line.endswith("\\") or "trellis" not in line] == []


def test_the_devices_of_the_quickstart_are_as_many_as_its_task_wants() -> None:
    (devices,) = [line for line in COMMANDS if "trellis device" in line]
    assert "for i in 0 1;" in devices
    assert "--partition $i/2" in devices


@pytest.mark.timeout(400)
def test_the_quickstart_word_for_word(terminals: Terminals) -> None:
    first, *middle, last = COMMANDS
    terminals.run(first, READY_S)
    for line in middle:
        terminals.open(line, PORTS.get(line, set()))
    assert "succeeded" in terminals.run(last, TASK_S)

    run = terminals.folder / "runs" / "digits"
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    assert (summary["state"], summary["rounds"]) == ("succeeded", 10)
    assert {device["samples"] for device in summary["devices"]} == {718, 719}  # 1,437 in two halves
    assert load_file(run / "model.safetensors")
    until(lambda: described(run) == [], lambda: f"the table and the folder agree: {described(run)}", END_S)

    answer = ""
    for line in AFTERWARDS:
        answer = terminals.run(line, READY_S)
    accuracy = float(answer.partition("accuracy")[2].split()[0])
    assert accuracy >= 0.9
    assert f"on {len(load('digits', split='test'))} test samples" in answer

    terminals.interrupt()
    until(lambda: terminals.left() == [], lambda: f"all have ended: {terminals.left()}", END_S)
    assert terminals.namespace.ports() == set()
