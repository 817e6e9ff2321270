"""Ports that stay their finder's until the process that is meant for them listens there, and afterwards."""

from __future__ import annotations

import socket

from trellis.loopback import free_ports


class ReservedPorts:
    """Free ports of loopback that nobody else who looks for one is given, until `release`.

    Each is bound here and not listened on. Linux lets another socket listen there all the same if both have
    SO_REUSEADDR, which mosquitto and our servers set; `free_ports`, in whatever process, passes it over.
    """

    def __init__(self, count: int) -> None:
        self.numbers: list[int] = []
        self._sockets: list[socket.socket] = []
        while len(self.numbers) < count:
            self._reserve(*free_ports(1))

    def _reserve(self, port: int) -> None:
        held = socket.socket()
        try:
            held.bind(("127.0.0.1", port))
        except OSError:
            held.close()  # somebody was faster
            return
        # Not before: two that both have it would both be bound.
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.numbers.append(port)
        self._sockets.append(held)

    def release(self) -> None:
        """Let others have them."""
        for held in self._sockets:
            held.close()
