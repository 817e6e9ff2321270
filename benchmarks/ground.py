"""The ground that a benchmark stands on: a folder of its own, processes that end with it, free ports."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Self

import psutil

ROOT = Path(__file__).resolve().parent.parent
# Scripts stand beside this module, and an uninstalled checkout is not found from there.
sys.path.insert(0, str(ROOT))

from trellis.config import PREFIX  # noqa: E402 - after the path is set
from trellis.processes import die_with_parent, terminate_tree  # noqa: E402 - as above

MARK = "FEDERATION_UNDER_MEASUREMENT"
"""Every process of a ground inherits this variable, also one that has lost its parent."""
_POLL_S = 0.02
_signals: list[int] = []
"""What has asked us to stop: an exception alone is lost where it is raised in a hook of Python's fork."""


class Ended(RuntimeError):
    """A process that was needed has ended, or said nothing in time; the message holds its last words."""


class Process:
    """One command line, started as often as needed."""

    def __init__(self, name: str, ground: Ground, command: list[str], environment: Mapping[str, str]) -> None:
        self.name = name
        self.log = ground.logs / f"{name}.log"
        self._ground, self._command, self._environment = ground, command, environment
        self._process: subprocess.Popen[bytes] | None = None
        self.killed = False

    @property
    def pid(self) -> int:
        """The process's ID, running or not."""
        if self._process is None:
            raise Ended(f"{self.name} was not started")
        return self._process.pid

    @property
    def started(self) -> bool:
        """Whether it was ever started."""
        return self._process is not None

    @property
    def running(self) -> bool:
        """Whether it was started and has not ended."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> Self:
        """Start it; its output goes to the end of its log."""
        self.killed = False
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                cwd=self._ground.folder,
                env={**self._ground.environment(), **self._environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # A session of its own: Ctrl-C is for the benchmark, which then ends its processes in order.
                start_new_session=True,
                preexec_fn=die_with_parent,  # noqa: PLW1509 - made for this: it allocates nothing
            )
        stop_if_asked()
        return self

    def kill(self) -> None:
        """End it as a power cut would, and nothing that it has started."""
        if self._process is not None:
            self.killed = True
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()

    def end(self) -> None:
        """End it and all that it has started."""
        if self._process is not None and self._process.poll() is None:
            terminate_tree(self._process.pid, grace_s=5.0)
        if self._process is not None:
            self._process.wait()

    def wait(self, timeout_s: float) -> int:
        """Return its exit status; `Ended` where it takes longer."""
        if self._process is None:
            raise Ended(f"{self.name} was not started")
        deadline = time.monotonic() + timeout_s
        while (status := self._process.poll()) is None:
            stop_if_asked()
            if time.monotonic() > deadline:
                raise Ended(f"{self.name} runs after {timeout_s:g} s:\n{self.last_words()}")
            time.sleep(_POLL_S)
        return status

    def last_words(self) -> str:
        """Return the end of its log."""
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return f"--- {self.name}\n" + "\n".join(text.splitlines()[-12:])


class Ground:
    """A temporary folder and the processes below it, from `__enter__` to `__exit__`."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="trellis-bench-"))
        self.logs, self.home = self.folder / "logs", self.folder / "home"
        for made in (self.logs, self.home, self.folder / "temporary"):
            made.mkdir()
        self.processes: list[Process] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        first, rest = self.processes[:1], self.processes[1:]
        for process in reversed(rest):
            with contextlib.suppress(ProcessLookupError):
                if process.running:
                    os.kill(process.pid, signal.SIGTERM)  # all at once: ending one takes a second
        for process in [*reversed(rest), *first]:
            process.end()
        for orphan in self._marked():
            terminate_tree(orphan.pid, grace_s=1.0)
        shutil.rmtree(self.folder, ignore_errors=True)

    def environment(self) -> dict[str, str]:
        """Return what processes see: no settings of the user's, one thread for numeric libraries."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith((PREFIX, "FLWR_"))}
        paths = (str(ROOT), str(ROOT / "benchmarks"), kept.get("PYTHONPATH", ""))
        return kept | {
            MARK: str(self.folder),
            "HOME": str(self.home),
            "TMPDIR": str(self.folder / "temporary"),
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), kept.get("PATH", os.defpath)]),
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "PYTHONUNBUFFERED": "1",
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "OMP_NUM_THREADS": "1",
        }

    def program(self, name: str, *command: str, environment: Mapping[str, str] | None = None) -> Process:
        """Return a process that is not yet started: a program beside this Python."""
        program = Path(sys.executable).parent / command[0]
        return self._process(name, [str(program), *command[1:]], environment)

    def python(self, name: str, *arguments: str, environment: Mapping[str, str] | None = None) -> Process:
        """Return a process of this Python that is not yet started."""
        return self._process(name, [sys.executable, *arguments], environment)

    def trellis(self, name: str, *arguments: str, environment: Mapping[str, str] | None = None) -> Process:
        """Return a `trellis` command that is not yet started."""
        return self.python(name, "-m", "trellis", *arguments, environment=environment)

    def until(self, holds: Callable[[], bool], what: str, *, within_s: float) -> float:
        """Return the monotonic time at which `holds` was first seen to hold."""
        deadline = time.monotonic() + within_s
        while not holds():
            stop_if_asked()
            if time.monotonic() > deadline:
                raise Ended(f"not within {within_s:g} s: {what}\n{self.last_words()}")
            time.sleep(_POLL_S)
        return time.monotonic()

    def last_words(self) -> str:
        """Return the ends of all logs."""
        return "\n".join(process.last_words() for process in self.processes)

    def _process(self, name: str, command: list[str], environment: Mapping[str, str] | None) -> Process:
        process = Process(name, self, command, environment or {})
        self.processes.append(process)
        return process

    def _marked(self) -> Iterator[psutil.Process]:
        for process in psutil.process_iter(["environ"]):
            if (process.info["environ"] or {}).get(MARK) == str(self.folder):
                yield process


def listens(port: int) -> bool:
    """Whether somebody listens on that port of 127.0.0.1."""
    with socket.socket() as probe:
        probe.settimeout(0.5)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def stop_if_asked() -> None:
    """Raise KeyboardInterrupt if a signal has come whose own exception was lost."""
    if _signals:
        raise KeyboardInterrupt(_signals[0])


def end_on_signals() -> None:
    """Let SIGTERM and SIGHUP end the benchmark as Ctrl-C does: everything it has started ends with it."""

    def on_signal(number: int, _frame: FrameType | None) -> None:
        for one in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(one, signal.SIG_IGN)  # a second one must not interrupt the clearing up
        _signals.append(number)
        raise KeyboardInterrupt(number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, on_signal)
