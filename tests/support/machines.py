"""Programs under test as processes of their own, each with a log, here or at a network's other end."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import trellis
from trellis.config import PREFIX
from trellis.processes import die_with_parent, terminate_tree

LIMIT_S = 60.0
"""A machine with two cores that runs other tests as well takes long to start an interpreter."""
TRELLIS = (sys.executable, "-m", "trellis")
_ROOT = Path(trellis.__file__).resolve().parent.parent

T = TypeVar("T")


def until(look: Callable[[], T | None], what: str, *, within_s: float = LIMIT_S) -> T:
    """Return what `look` returns once that is neither None nor False, or fail at the deadline."""
    deadline = time.monotonic() + within_s
    while True:
        found = look()
        if found is not None and found is not False:
            return found
        assert time.monotonic() < deadline, f"not within {within_s:g} s: {what}"
        time.sleep(0.05)


@dataclass(frozen=True)
class Ended:
    """A command that has ended, and all that it said."""

    code: int
    out: str
    err: str


class Machine:
    """A folder that commands run in, and where they run: `enter` is what a command starts with there."""

    def __init__(self, folder: Path, enter: Sequence[str] = ()) -> None:
        self.folder, self._enter = folder, tuple(enter)
        self.home = folder / "home"
        self.home.mkdir(parents=True, exist_ok=True)

    def spawn(self, command: Sequence[str], *, out: int, err: int) -> subprocess.Popen[bytes]:
        """Start a program; `ip netns exec` becomes it, so that the pid is the program's own."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
        path = os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH"))))
        return subprocess.Popen(
            [*self._enter, *command],
            cwd=self.folder,
            env=kept | {"HOME": str(self.home), "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            start_new_session=True,
            # A test run that dies must leave nothing behind.
            preexec_fn=die_with_parent,  # noqa: PLW1509 - made for this: it allocates nothing
        )

    def run(self, *arguments: str, within_s: float = LIMIT_S) -> Ended:
        """Run `trellis ARGUMENTS` to its end."""
        out_file, err_file = self.folder / "command.out", self.folder / "command.err"
        with out_file.open("wb") as out, err_file.open("wb") as err:
            process = self.spawn([*TRELLIS, *arguments], out=out.fileno(), err=err.fileno())
        try:
            code = process.wait(within_s)
        except subprocess.TimeoutExpired:
            said = err_file.read_text()
            raise AssertionError(f"trellis {' '.join(arguments)} runs after {within_s:g} s\n{said}") from None
        finally:
            if process.poll() is None:
                terminate_tree(process.pid)
                process.wait()
        return Ended(code, out_file.read_text(), err_file.read_text())


class Running:
    """A program that runs until it is stopped."""

    def __init__(self, name: str, machine: Machine, command: Sequence[str]) -> None:
        self.name, self._log = name, machine.folder / f"{name}.log"
        with self._log.open("ab") as log:
            self._process = machine.spawn(command, out=log.fileno(), err=log.fileno())

    @property
    def runs(self) -> bool:
        """Whether it still runs."""
        return self._process.poll() is None

    def said(self) -> str:
        """Return all that it has logged."""
        return self._log.read_text(errors="replace")

    def last_words(self) -> str:
        """Return the end of its log below its name."""
        return "\n".join([f"--- {self.name}", *self.said().splitlines()[-15:]])

    def says(self, pattern: str, *, within_s: float = LIMIT_S) -> str:
        """Return the line of its log that `pattern` is found in, once it is there."""

        def line() -> str | None:
            return next((one for one in self.said().splitlines() if re.search(pattern, one)), None)

        try:
            return until(line, f"{self.name} says {pattern!r}", within_s=within_s)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.last_words()}") from None

    def ended(self, *, within_s: float = LIMIT_S) -> int:
        """Return its exit code once it has ended by itself."""
        return self._process.wait(within_s)

    def stop(self) -> int:
        """End it with SIGTERM, and return its exit code; what does not obey is killed, and the test fails."""
        if self.runs:
            self._process.terminate()
        try:
            return self._process.wait(LIMIT_S)
        finally:
            if self.runs:
                terminate_tree(self._process.pid, grace_s=1.0)
                self._process.wait()
