"""What is loopback, beyond which nothing of ours binds or connects without TLS, and which ports are free."""

from __future__ import annotations

import contextlib
import ipaddress
import random
import socket

from trellis.errors import Unavailable

_PORTS = range(20_000, 32_000)
"""Below what Linux gives to outgoing connections: one of those could take a port before who was given it."""


def is_loopback(host: str) -> bool:
    """Whether `host` is this machine's loopback: `localhost`, 127.0.0.0/8 or ::1."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def free_ports(count: int, host: str = "127.0.0.1") -> list[int]:
    """Return so many different TCP ports of one of this machine's addresses that nobody listens on.

    Raises:
        Unavailable: There are not so many.
    """
    found: list[int] = []
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for port in random.SystemRandom().sample(_PORTS, len(_PORTS)):
        if len(found) == count:
            break
        with socket.socket(family) as probe, contextlib.suppress(OSError):
            probe.bind((host, port))
            found.append(port)
    if len(found) < count:
        between = f"from {_PORTS.start} to {_PORTS.stop - 1}"
        raise Unavailable(f"{host} has no {count} free ports {between}: end what listens there")
    return found
