"""Starts `trellis` commands by forking a process that has imported all that they need, and nothing else.

A federation is ten interpreters, and what each imports takes up to two seconds of a processor. Who is born
here is a process of its own nevertheless, with its own arguments, folder, environment, session and files;
only /proc tells it from a fresh one, where it has the nursery's command line and environment.

What that leaves untested: that a command imports what it uses (here all of MODULES is there already, Flower
wholly, so that `trellis.flower.deferred` defers nothing), and what differs from one interpreter's start to
the next: the hashes of strings, and numpy's and random's state, which all who are born here share. All of a
federation that is `cold` are interpreters of their own: those of test_task_life, test_recovery and
test_determinism always, every one with FEDERATION_COLD=1 in the environment; so is a member with a `Machine`.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from trellis.processes import die_with_parent

MODULES = (
    "central_server.service",
    "device_agent.client_app",
    "device_agent.service",
    "models.backends.torch",
    "regional_gateway.starting",
    "trellis.cli.broker",
    "trellis.cli.root",
    "trellis.cli.task.command",
)

PATH = os.environ.get("PYTHONPATH")
"""Where imports come from here; a test that says otherwise needs an interpreter of its own."""


class Born:
    """A process of the nursery's, as `subprocess.Popen` shows one."""

    def __init__(self, pid: int, ending: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._ending = ending  # gets its exit code

    def poll(self) -> int | None:
        """Return its exit code, None while it runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Return its exit code once it has ended.

        Raises:
            subprocess.TimeoutExpired: It runs still.
        """
        if self.returncode is None:
            if not select.select([self._ending], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0)
            code = os.read(self._ending, 16)
            os.close(self._ending)
            self.returncode = int(code) if code else -signal.SIGKILL  # the nursery is gone, and so all of its
        return self.returncode

    def kill(self) -> None:
        """SIGKILL it."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)


class Nursery:
    """The process that forks; it ends with this one."""

    def __init__(self) -> None:
        self._door, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-u", __file__, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
                preexec_fn=die_with_parent,  # noqa: PLW1509 - made for this: it allocates nothing
            )

    def start(
        self, *arguments: str, folder: Path, environment: Mapping[str, str], out: int, err: int
    ) -> Born:
        """Start `trellis ARGUMENTS` in `folder`."""
        ending, theirs = os.pipe()
        order = {"arguments": arguments, "folder": str(folder), "environment": dict(environment)}
        socket.send_fds(self._door, [json.dumps(order).encode()], [out, err, theirs])
        os.close(theirs)
        answer = self._door.recv(16)
        assert answer, f"the nursery has ended with {self._process.wait()}"
        return Born(int(answer), ending)


@cache
def nursery() -> Nursery:
    """Return this process's nursery."""
    return Nursery()


def _be_born(door: socket.socket) -> None:
    """Fork at every order; returns in the child alone."""
    woken, wakes = socket.socketpair()
    wakes.setblocking(False)
    signal.set_wakeup_fd(wakes.fileno())
    signal.signal(signal.SIGCHLD, lambda *_: None)
    endings: dict[int, int] = {}
    while True:
        ready, _, _ = select.select([door, woken], [], [])
        if woken in ready:
            woken.recv(4096)
            _tell_endings(endings)
        if door not in ready:
            continue
        order, descriptors, _, _ = socket.recv_fds(door, 1 << 20, 3)
        if not order:
            sys.exit()
        out, err, ending = descriptors
        if (pid := os.fork()) == 0:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for one in (door, woken, wakes):
                one.close()
            for descriptor in (ending, *endings.values()):
                os.close(descriptor)
            _become(**json.loads(order), out=out, err=err)
            return
        endings[pid] = ending
        os.close(out)
        os.close(err)
        door.send(str(pid).encode())


def _tell_endings(endings: dict[int, int]) -> None:
    while endings:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            return
        os.write(endings[pid], str(os.waitstatus_to_exitcode(status)).encode())
        os.close(endings.pop(pid))


def _become(arguments: list[str], folder: str, environment: dict[str, str], out: int, err: int) -> None:
    die_with_parent()
    os.setsid()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    tempfile.tempdir = None
    for descriptor, place in ((out, 1), (err, 2)):
        os.dup2(descriptor, place)
        os.close(descriptor)
    sys.argv = ["trellis", *arguments]
    sys.path[0] = folder


if __name__ == "__main__":
    for module in MODULES:
        importlib.import_module(module)
    _be_born(socket.socket(fileno=int(sys.argv[1])))
    from trellis.cli import main

    sys.exit(main())
