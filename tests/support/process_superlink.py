"""A stand-in for a SuperLink whose apps are processes, for the services that run one."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from trellis.errors import Unavailable
from trellis.processes import terminate_tree

_RUN_IDS = itertools.count(1000)


@dataclass
class ProcessSuperLink:
    """Stands in for a SuperLink: each run is a real process that speaks the backchannel.

    Attributes:
        program: The stand-in for the app, called with PART TASK RUN_ID.
        script: What part each next run has.
        clears_up: What it waits for when it has ended, before its processes are gone; None for nothing.
    """

    program: Path
    environment: Mapping[str, str]
    script: list[str]
    address: str = "127.0.0.1:9"
    runs: dict[int, asyncio.subprocess.Process] = field(default_factory=dict)
    stopped: list[int] = field(default_factory=list)
    died: asyncio.Event = field(default_factory=asyncio.Event)
    clears_up: asyncio.Event | None = None

    async def submit(self, app: Path, run_config: Mapping[str, str | int | float | bool]) -> int:
        if self.died.is_set():
            raise Unavailable("the SuperLink does not answer")
        run_id = next(_RUN_IDS)
        part = self.script.pop(0) if self.script else "silent"
        self.runs[run_id] = await asyncio.create_subprocess_exec(
            sys.executable,
            str(self.program),
            part,
            str(run_config["task"]),
            str(run_id),
            env={**self.environment, "PATH": ""},
        )
        return run_id

    async def stop_run(self, run_id: int) -> None:
        self.stopped.append(run_id)
        await asyncio.to_thread(terminate_tree, self.runs[run_id].pid, grace_s=0.5)

    async def wait_ended(self) -> int:
        await self.died.wait()
        return -9

    async def end(self) -> None:
        if self.clears_up is not None:
            async with asyncio.timeout(60):
                await self.clears_up.wait()
        for process in self.runs.values():
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
            await process.wait()
