"""Two machines for a test: this one, and a network namespace that reaches it over a virtual cable only.

What runs at the edge has no loopback in common with what runs here, so nothing can work by accident of being
on one machine. Where namespaces are not permitted both ends are this machine's own address beyond loopback.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

import psutil
import pytest

_PREFIX = "trellis-test-"


@dataclass(frozen=True)
class Network:
    """Two ends, neither of them loopback.

    Attributes:
        centre: This machine's address.
        edge: The other end's.
        at_edge: What a command there starts with; nothing where both ends are this machine.
        cable: What takes this end of the cable down or up, with that word behind it.
    """

    centre: str
    edge: str
    at_edge: tuple[str, ...] = ()
    cable: tuple[str, ...] = ()

    @contextlib.contextmanager
    def cut(self) -> Iterator[None]:
        """The two ends do not hear of each other while this is open, and nobody tells them so."""
        if not self.cable:
            problem = "there is no cable between two ends on one machine"
            pytest.fail(problem) if os.environ.get("CI") else pytest.skip(problem)
        subprocess.run([*self.cable, "down"], check=True, timeout=20)
        try:
            yield
        finally:
            subprocess.run([*self.cable, "up"], check=True, timeout=20)


@contextlib.contextmanager
def network() -> Iterator[Network]:
    """Two ends for as long as the context is open; without any the test is skipped, and in CI it fails."""
    with contextlib.ExitStack() as stack:
        try:
            found: Network | None = stack.enter_context(_namespace())
        except (OSError, subprocess.CalledProcessError):
            found = _own_address()
        if found is None:
            problem = "neither a network namespace nor an address beyond loopback is to be had"
            if os.environ.get("CI"):
                pytest.fail(f"{problem}, and CI must not skip what needs one")
            pytest.skip(problem)
        yield found


@contextlib.contextmanager
def _namespace() -> Iterator[Network]:
    program = shutil.which("ip", path=os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin"]))
    if program is None:
        raise FileNotFoundError("ip")

    def ip(*words: str) -> str:
        done = subprocess.run([program, *words], check=True, capture_output=True, text=True, timeout=20)
        return done.stdout

    _sweep(ip("netns", "list"), program)
    name, cable = f"{_PREFIX}{os.getpid()}-{secrets.token_hex(2)}", f"tt{secrets.token_hex(4)}"
    centre, edge = _free_pair()
    ip("netns", "add", name)
    try:
        ip("link", "add", f"{cable}a", "type", "veth", "peer", "name", f"{cable}b", "netns", name)
        ip("address", "add", f"{centre}/30", "dev", f"{cable}a")
        ip("link", "set", f"{cable}a", "up")
        for words in (
            ("address", "add", f"{edge}/30", "dev", f"{cable}b"),
            ("link", "set", f"{cable}b", "up"),
            ("link", "set", "lo", "up"),
        ):
            ip("-n", name, *words)
        cable_command = (program, "link", "set", f"{cable}a")
        yield Network(centre, edge, (program, "netns", "exec", name), cable_command)
    finally:
        # Its end of the cable goes with it, and with that ours.
        ip("netns", "del", name)


def _sweep(listed: str, program: str) -> None:
    """Remove what test runs left that were killed."""
    for line in listed.splitlines():
        name = line.split()[0] if line.split() else ""
        pid, _, _ = name.removeprefix(_PREFIX).partition("-")
        if name.startswith(_PREFIX) and pid.isdigit() and not psutil.pid_exists(int(pid)):
            subprocess.run([program, "netns", "del", name], check=False, capture_output=True, timeout=20)


def _free_pair() -> tuple[str, str]:
    """Return the two addresses of a /30 that no interface here has."""
    taken = {address.address for addresses in psutil.net_if_addrs().values() for address in addresses}
    while True:
        # 198.18.0.0/15 is for trials between networks (RFC 2544): no real network has it.
        first = f"198.{18 + secrets.randbelow(2)}.{secrets.randbelow(256)}.{4 * secrets.randbelow(64)}"
        head, _, last = first.rpartition(".")
        centre, edge = f"{head}.{int(last) + 1}", f"{head}.{int(last) + 2}"
        if not taken & {centre, edge}:
            return centre, edge


def _own_address() -> Network | None:
    for name, addresses in psutil.net_if_addrs().items():
        for address in addresses:
            up = psutil.net_if_stats()[name].isup
            if up and address.family is socket.AF_INET and not address.address.startswith("127."):
                return Network(address.address, address.address)
    return None
