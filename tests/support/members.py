"""The federation's processes: `trellis` commands that are killed, stopped and started again by their pids."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from nursery import PATH, Born, nursery

import trellis
from trellis.config import PREFIX
from trellis.processes import die_with_parent, terminate_tree

ROOT = Path(trellis.__file__).resolve().parent.parent
MARK = "FEDERATION_UNDER_TEST"
"""Every process below a federation inherits this variable, also one that has lost its parent."""

COLD = "FEDERATION_COLD"
"""Set to 1, this variable makes every process of every federation a fresh interpreter; see `nursery`."""


@dataclass(frozen=True)
class Finished:
    """A command that has ended."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Machine:
    """What is installed where a command runs: an interpreter, and variables that differ from the others'."""

    python: str = sys.executable
    environment: Mapping[str, str] = field(default_factory=dict)


class Ground:
    """A folder that everything below it has for a home, and the mark that tells its processes from others.

    Args:
        folder: Is made.
        cold: Nobody comes from the nursery.
    """

    def __init__(self, folder: Path, *, cold: bool = False) -> None:
        self.folder = folder
        self._cold = cold or os.environ.get(COLD) == "1"
        self.mark = str(folder)
        self.logs = folder / "logs"
        self.home, self.temporary = folder / "home", folder / "temporary"
        self._born: list[psutil.Process] = []
        for made in (self.logs, self.home, self.temporary):
            made.mkdir(parents=True, exist_ok=True)

    def environment(self) -> dict[str, str]:
        """Return what processes see: none of the user's settings, a home and temporary files of their own."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
        return kept | {
            MARK: self.mark,
            "HOME": str(self.home),
            "TMPDIR": str(self.temporary),
            "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
            "PYTHONUNBUFFERED": "1",
        }

    def spawn(
        self, *arguments: str, out: int, err: int, machine: Machine | None = None
    ) -> subprocess.Popen[bytes]:
        """Start `trellis ARGUMENTS` in the folder."""
        machine = machine or Machine()
        return subprocess.Popen(
            [machine.python, "-m", "trellis", *arguments],
            cwd=self.folder,
            env={**self.environment(), **machine.environment},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            start_new_session=True,
            # A test run that dies must leave nothing behind either.
            preexec_fn=die_with_parent,  # noqa: PLW1509 - made for this: it allocates nothing
        )

    def bear(self, *arguments: str, out: int, err: int) -> Born | subprocess.Popen[bytes]:
        """Start `trellis ARGUMENTS` in the folder, from the nursery where that does; see `nursery`."""
        if self._cold or os.environ.get("PYTHONPATH") != PATH:
            return self.spawn(*arguments, out=out, err=err)
        born = nursery().start(
            *arguments, folder=self.folder, environment=self.environment(), out=out, err=err
        )
        with suppress(psutil.NoSuchProcess):
            self._born.append(psutil.Process(born.pid))
        return born

    async def command(self, *arguments: str, timeout_s: float = 90.0) -> Finished:
        """Run `trellis ARGUMENTS` to its end; at the deadline it is ended, and that is an error."""
        stem = f"command-{time.monotonic_ns()}"
        out, err = self.logs / f"{stem}.out", self.logs / f"{stem}.err"
        with out.open("wb") as out_file, err.open("wb") as err_file:
            process = self.bear(*arguments, out=out_file.fileno(), err=err_file.fileno())
        try:
            code = await asyncio.to_thread(process.wait, timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"trellis {' '.join(arguments)} runs after {timeout_s:g} s") from None
        finally:
            if process.poll() is None:
                terminate_tree(process.pid)
                process.wait()
        return Finished(code, out.read_text(), err.read_text())

    def processes(self) -> list[psutil.Process]:
        """Return every process of this ground that runs, whoever its parent is."""
        found = [
            process
            for process in psutil.process_iter(["environ"])
            if (process.info["environ"] or {}).get(MARK) == self.mark
        ]
        return [process for process in (*self._born, *found) if is_running(process)]

    def residue(self) -> list[str]:
        """Return what is left, in words: processes, and temporary files."""
        left = [f"process {process.pid}: {command_line(process)}" for process in self.processes()]
        left += [f"temporary file {path.name}" for path in sorted(self.temporary.iterdir())]
        return left

    def clear(self) -> None:
        """End every process of this ground."""
        for process in self.processes():
            terminate_tree(process.pid, grace_s=1.0)


class Member:
    """One command of a federation, started as often as needed with the same arguments."""

    def __init__(self, name: str, ground: Ground, *arguments: str, machine: Machine | None = None) -> None:
        self.name, self.arguments = name, arguments
        self._machine = machine
        self.log = ground.logs / f"{name}.log"
        self._ground = ground
        self._process: subprocess.Popen[bytes] | Born | None = None
        self.wanted = False

    @property
    def pid(self) -> int:
        assert self._process is not None, f"{self.name} was never started"
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def fell(self) -> bool:
        """Whether it has ended although nobody asked it to."""
        return self.wanted and not self.running

    def start(self, *more: str) -> None:
        """Start it, with `more` arguments this once."""
        assert not self.running, f"{self.name} runs already"
        with self.log.open("ab") as log:
            log.write(f"=== trellis {' '.join((*self.arguments, *more))}\n".encode())
            log.flush()
            arguments, file = (*self.arguments, *more), log.fileno()
            if self._machine is None:
                self._process = self._ground.bear(*arguments, out=file, err=file)
            else:
                self._process = self._ground.spawn(*arguments, out=file, err=file, machine=self._machine)
        self.wanted = True

    def kill(self) -> None:
        """SIGKILL the process itself, not its children, and wait for it."""
        self.wanted = False
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    async def stop(self, number: signal.Signals = signal.SIGTERM, *, within_s: float = 60.0) -> int:
        """Signal it, and return its exit code."""
        self.wanted = False
        if self.running:
            os.kill(self.pid, number)
            self.resume()  # a process that is held hears no signal
        return await self.ended(within_s=within_s)

    async def ended(self, *, within_s: float) -> int:
        """Return its exit code once it has ended."""
        assert self._process is not None
        deadline = time.monotonic() + within_s
        while self._process.poll() is None:
            assert time.monotonic() < deadline, f"{self.name} runs {within_s:g} s later\n{self.last_words()}"
            await asyncio.sleep(0.05)
        return self._process.returncode

    def pause(self) -> None:
        """Hold it with SIGSTOP: it is there, and does nothing."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def descendants(self) -> list[psutil.Process]:
        """Return its children and theirs."""
        return psutil.Process(self.pid).children(recursive=True)

    def said(self) -> str:
        """Return all that it has logged, of all its lives."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def last_words(self, lines: int = 25) -> str:
        """Return the end of its log under its name."""
        return "\n".join([f"--- {self.name}", *self.said().splitlines()[-lines:]])


def is_running(process: psutil.Process) -> bool:
    """Whether it runs; a zombie does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def command_line(process: psutil.Process) -> str:
    """Return its command line, or a word on why there is none."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error as error:
        return repr(error)


def listened(ports: list[int]) -> list[int]:
    """Return those of `ports` that somebody listens on."""
    listening = {port for port, _ in _listeners()}
    return [port for port in ports if port in listening]


def listening_ports(processes: list[psutil.Process]) -> list[int]:
    """Return the ports that any of `processes` listens on."""
    pids = {process.pid for process in processes}
    return sorted({port for port, pid in _listeners() if pid in pids})


def _listeners() -> list[tuple[int, int | None]]:
    found = psutil.net_connections("tcp")
    return [(one.laddr.port, one.pid) for one in found if one.laddr and one.status == psutil.CONN_LISTEN]
