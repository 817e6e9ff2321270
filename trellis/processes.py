"""Child processes that end with us, and what a killed predecessor has left behind."""

from __future__ import annotations

import ctypes
import json
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from trellis.files import write_atomically

_PR_SET_PDEATHSIG = 1
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def _libc_prctl() -> Callable[..., int] | None:
    # Loaded at import: between fork and exec nothing may be imported or allocated by a loader.
    if not sys.platform.startswith("linux"):
        return None
    prctl: Callable[..., int] = ctypes.CDLL(None, use_errno=True).prctl
    return prctl


_PRCTL = _libc_prctl()


def die_with_parent() -> None:
    """Have the kernel send us SIGTERM when our parent ends; for `preexec_fn`, and Linux only.

    "Parent" is the *thread* that forked (prctl(2)), not its process: start the child from the main
    thread, as asyncio on it does, and never from an executor's. The setting survives exec, except of
    set-uid programs, and is not inherited: a grandchild needs its own, or a `PidFile`.
    """
    if _PRCTL is not None:
        _PRCTL(_PR_SET_PDEATHSIG, signal.SIGTERM)


def terminate_tree(pid: int, *, grace_s: float = 3.0) -> None:
    """End a process and all its descendants: nothing of them runs on return.

    SIGTERM goes to the root, so that it can end its children in its own order. After `grace_s` what
    is left of the tree, as it was before, gets SIGKILL, orphans included. psutil compares start
    times, so that a process which got a reused pid is never hit. Blocks for up to `grace_s` + 3 s.
    """
    try:
        root = psutil.Process(pid)
        tree = [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    _signal(root, signal.SIGTERM)
    ended = _await_end([root], grace_s)
    # Children born meanwhile; those of one that has ended were collected before, or belong to init.
    for process in list(tree):
        tree.extend(child for child in _children(process) if child not in tree)
    if ended:
        _await_end(tree, min(grace_s, 0.5))  # they may be ending because their parent has
    for process in tree:
        if _runs(process):
            _signal(process, signal.SIGKILL)
    _await_end(tree, 3.0)


def _await_end(processes: list[psutil.Process], timeout_s: float) -> bool:
    # Not psutil.wait_procs: it would reap our own children, and take their exit status from whoever
    # started them (subprocess, asyncio).
    deadline = time.monotonic() + timeout_s
    while any(_runs(process) for process in processes):
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.02)
    return True


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _signal(process: psutil.Process, number: signal.Signals) -> None:
    try:
        process.send_signal(number)
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return


@dataclass(frozen=True)
class PidFile:
    """A file that says which child process a service has started.

    Attributes:
        path: JSON with `pid` and `born`, what tells the process from others that have had that pid.
    """

    path: Path

    def write(self, pid: int) -> None:
        """Note a child, unless it has ended already; the file is replaced in one step, so it is whole."""
        try:
            text = json.dumps({"pid": pid, "born": _born(pid)})
        except psutil.NoSuchProcess:
            self.clear()
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path, text.encode())

    def end_previous(self, *, grace_s: float = 3.0) -> bool:
        """End what a killed predecessor left behind, with its descendants; return whether there was any."""
        try:
            noted = json.loads(self.path.read_text(encoding="utf-8"))
            pid, born = int(noted["pid"]), str(noted["born"])
        except FileNotFoundError:
            return False
        except (ValueError, KeyError, TypeError):
            self.clear()  # a torn or foreign file names no process
            return False
        ours = _is_still(pid, born)
        if ours:
            terminate_tree(pid, grace_s=grace_s)
        self.clear()
        return ours

    def clear(self) -> None:
        """Forget the child: it has ended."""
        self.path.unlink(missing_ok=True)


def _is_still(pid: int, born: str) -> bool:
    try:
        return _runs(psutil.Process(pid)) and _born(pid) == born
    except psutil.NoSuchProcess:
        return False


def _born(pid: int) -> str:
    """Return when a process started, such that no step of the clock changes it.

    Raises:
        NoSuchProcess: There is none.
    """
    if not sys.platform.startswith("linux"):
        return str(psutil.Process(pid).create_time())
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        raise psutil.NoSuchProcess(pid) from None
    # proc_pid_stat(5): field 22 counts ticks since the boot; field 2, a name, may hold brackets and blanks.
    ticks = fields.rpartition(")")[2].split()[22 - 3]
    return f"{_BOOT_ID.read_text(encoding='ascii').strip()} {ticks}"


def port_owner(port: int) -> str | None:
    """Return who listens on a TCP port of this machine, as `mosquitto (pid 1234)`, if we may know."""
    try:
        connections = psutil.net_connections(kind="tcp")
    except psutil.AccessDenied:
        return None
    for connection in connections:
        if connection.status != psutil.CONN_LISTEN or not connection.laddr:
            continue
        if connection.laddr.port == port and connection.pid is not None:
            try:
                return f"{psutil.Process(connection.pid).name()} (pid {connection.pid})"
            except psutil.NoSuchProcess:
                return None
    return None
