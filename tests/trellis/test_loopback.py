"""Ports that are free, and stay so until whoever was given them takes them."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from trellis.errors import Unavailable
from trellis.loopback import free_ports


def test_free_ports_are_different_and_none_that_an_outgoing_connection_may_get() -> None:
    found = free_ports(20)
    assert len(set(found)) == 20
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert max(found) < first


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_port_that_somebody_has_is_not_free(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, 0), family=family).close()
    except OSError as error:
        pytest.skip(f"this machine has no {host}: {error}")
    (port,) = free_ports(1, host)
    monkeypatch.setattr("trellis.loopback._PORTS", range(port, port + 1))
    assert free_ports(1, host) == [port]
    with (
        socket.create_server((host, port), family=family),
        pytest.raises(Unavailable, match=f"no 1 free ports from {port}"),
    ):
        free_ports(1, host)
