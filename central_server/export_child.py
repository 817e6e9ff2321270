"""The child process that exports: it never outlives its server, and says why it could not."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from trellis.disk import has_room
from trellis.errors import DiskFailed, Refused, TrellisError
from trellis.processes import PidFile, die_with_parent, terminate_tree

_SAID_BYTES = 65536
_REASON_CHARS = 1000


async def run_export(command: Sequence[str], workshop: Path, pid_file: PidFile, *, limit_s: float) -> None:
    """Run an export in its folder to its end; it never outlives this call.

    Raises:
        Refused: It says that it cannot export the model (`export`).
        DiskFailed: It failed on a full disk.
        TrellisError: It failed otherwise.
    """
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        env={**_environment(), "TMPDIR": str(workshop)},
        cwd=workshop,
        preexec_fn=die_with_parent,
    )
    pid_file.write(process.pid)
    try:
        async with asyncio.timeout(limit_s):
            said = await _end_of(process.stderr)
            status = await process.wait()
    except TimeoutError:
        raise TrellisError(f"it took longer than {limit_s:g} s") from None
    finally:
        if process.returncode is None:
            await asyncio.shield(asyncio.to_thread(terminate_tree, process.pid))
            await process.wait()
        pid_file.clear()
    if status != 0:
        error = _error_of(said, status)
        # A full disk makes whatever runs on it say so in its own words.
        roomy = await asyncio.to_thread(has_room, workshop)
        raise error if roomy else DiskFailed(f"{error} (its disk is full)")


async def _end_of(stream: asyncio.StreamReader | None) -> str:
    """Return the last of what a child says, which may be a lot."""
    said = b""
    while stream is not None and (piece := await stream.read(_SAID_BYTES)):
        said = (said + piece)[-_SAID_BYTES:]
    return said.decode(errors="replace")


def _error_of(said: str, status: int) -> TrellisError:
    """Return why a child failed: what follows its `error:`, or else its last line."""
    _, found, error = f"\n{said}".rpartition("\nerror: ")
    lines = said.strip().splitlines() or ["it said nothing"]
    why = " ".join((error if found else lines[-1]).split())[:_REASON_CHARS]
    return Refused("export", why) if found else TrellisError(f"its process ended with status {status}: {why}")


def _environment() -> dict[str, str]:
    """Return what a child inherits: not our options, and the path that our own modules were found on."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("TRELLIS_")}
    return {**inherited, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
