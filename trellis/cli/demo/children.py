"""The demo's processes: each a `trellis` command with a log of its own, none of which outlives the demo."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import trellis
from trellis.config import PREFIX
from trellis.errors import TrellisError, Unavailable
from trellis.processes import die_with_parent, terminate_tree

LAST_LINES = 12
_POLL_S = 0.1


@dataclass(frozen=True)
class Child:
    """One running command."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    def last_words(self) -> str:
        """Return the last lines of its log, indented."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-LAST_LINES:]
        return "\n".join(f"    {line}" for line in lines) or "    (its log is empty)"


class Children:
    """Starts commands below one folder, and ends them all when it is left.

    Enter and use it on the main thread: a child ends with the thread that has started it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._logs = folder, folder / "logs"
        self._logs.mkdir(exist_ok=True)
        self._running: list[Child] = []

    async def __aenter__(self) -> Children:
        return self

    async def __aexit__(self, *_: object) -> None:
        # The first one started is the broker: it goes last, so that the others can say goodbye through it.
        first, rest = self._running[:1], self._running[1:]
        await asyncio.gather(*(asyncio.to_thread(_end, child) for child in rest))
        await asyncio.gather(*(asyncio.to_thread(_end, child) for child in first))

    def start(self, name: str, *arguments: str, python: str | None = None) -> Child:
        """Start `trellis ARGUMENTS` as a process of its own, in a folder without settings.

        Args:
            name: Of its log.
            python: That of another environment; None is the one that runs this.
        """
        log = self._logs / f"{name}.log"
        with log.open("ab") as output:
            process = self._spawn(arguments, output=output.fileno(), errors=subprocess.STDOUT, python=python)
        child = Child(name, process, log)
        self._running.append(child)
        return child

    async def result_of(self, name: str, *arguments: str, timeout_s: float) -> str:
        """Return what `trellis ARGUMENTS` prints.

        Raises:
            TrellisError: It failed, or took too long; its last words are in the message.
        """
        output, log = self._logs / f"{name}.out", self._logs / f"{name}.log"
        with output.open("wb") as out, log.open("wb") as errors:
            process = self._spawn(arguments, output=out.fileno(), errors=errors.fileno())
        child = Child(name, process, log)
        self._running.append(child)
        try:
            async with asyncio.timeout(timeout_s):
                while process.poll() is None:  # noqa: ASYNC110 - Popen has no event
                    await asyncio.sleep(_POLL_S)
        except TimeoutError:
            raise Unavailable(f"{name} took longer than {timeout_s:g} s:\n{child.last_words()}") from None
        self._running.remove(child)
        if process.returncode != 0:
            raise TrellisError(f"{name} failed (exit status {process.returncode}):\n{child.last_words()}")
        return output.read_text(encoding="utf-8")

    async def until_one_ends(self, among: Sequence[Child]) -> None:
        """Wait for a child to end, which none should by itself.

        Raises:
            Unavailable: One has; its last words are in the message.
        """
        while True:
            for child in among:
                code = child.process.poll()
                if code is not None:
                    raise Unavailable(f"{child.name} has ended (exit status {code}):\n{child.last_words()}")
            await asyncio.sleep(_POLL_S)

    def _spawn(
        self, arguments: Sequence[str], *, output: int, errors: int, python: str | None = None
    ) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [python or sys.executable, "-m", "trellis", *arguments],
            cwd=self._folder,
            env=_environment() if python is None else _foreign_environment(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=errors,
            # A session of its own: Ctrl-C is for the demo, which then ends its children in order.
            start_new_session=True,
            preexec_fn=die_with_parent,  # noqa: PLW1509 - made for this: it allocates nothing
        )


def words_of(children: Iterable[Child]) -> str:
    """Return the last lines of every child's log."""
    return "\n".join(f"  {child.name}:\n{child.last_words()}" for child in children)


def _foreign_environment() -> dict[str, str]:
    """Return what children of another environment see: it has its own Trellis, and no package of ours."""
    return {name: value for name, value in _environment().items() if name != "PYTHONPATH"}


def _environment() -> dict[str, str]:
    # The user's own settings are for the user's own fleet.
    kept = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    # Children run in the demo's folder: without this an uninstalled checkout would not be found from there.
    root = str(Path(trellis.__file__).resolve().parent.parent)
    kept["PYTHONPATH"] = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    kept["PYTHONUNBUFFERED"] = "1"
    return kept


def _end(child: Child) -> None:
    if child.process.poll() is None:
        terminate_tree(child.process.pid, grace_s=5.0)
    child.process.wait()
