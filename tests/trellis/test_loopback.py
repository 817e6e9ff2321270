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


def test_a_port_that_somebody_has_is_not_free(monkeypatch: pytest.MonkeyPatch) -> None:
    (port,) = free_ports(1)
    monkeypatch.setattr("trellis.loopback._PORTS", range(port, port + 1))
    assert free_ports(1) == [port]
    with (
        socket.create_server(("127.0.0.1", port)),
        pytest.raises(Unavailable, match=f"no 1 free ports from {port}"),
    ):
        free_ports(1)
