"""A ServerApp's process, as its service watches it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import psutil

from trellis.errors import Refused
from trellis.flower.backchannel import Hello
from trellis.processes import terminate_tree


@dataclass(frozen=True)
class AppProcess:
    """The process that said hello; psutil tells it by its start from another that gets its pid later."""

    run_id: int
    process: psutil.Process

    @classmethod
    def of(cls, hello: Hello) -> Self:
        """Return the process that says hello.

        Raises:
            Refused: There is none with that pid.
        """
        try:
            return cls(hello.run_id, psutil.Process(hello.pid))
        except (psutil.NoSuchProcess, ValueError):
            raise Refused(
                "run", f"run {hello.run_id} says it is process {hello.pid}: none such runs"
            ) from None

    @property
    def pid(self) -> int:
        """Its process ID."""
        return self.process.pid

    @property
    def alive(self) -> bool:
        """Whether it runs: a zombie does not."""
        try:
            return self.process.is_running() and self.process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    def end(self) -> None:
        """End it and its children, if it still runs; blocks for some seconds at most."""
        if self.alive:
            terminate_tree(self.pid, grace_s=2.0)
