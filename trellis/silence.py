"""When a TCP peer has gone without a word: power or radio lost in mid-stream ends no connection by itself.

The kernel keeps such a connection for ever where it only waits for the peer, and for a quarter of an hour
where it sends again and again what the peer does not take. A peer that is slow is not silent: it takes a
little all the time.
"""

from __future__ import annotations

import asyncio
import socket
import sys

SILENCE_S = 60.0
"""A peer that is due, and from which nothing has come for so long, has gone."""

UNTAKEN_S = 600.0
"""So has one that takes nothing of what is for it for so long. Where a proxy on this machine reads for a slow
device the window opens in steps of 64 KiB and more: a minute would end who reads 3 KB/s.
"""


def end_when_untaken(transport: asyncio.BaseTransport, untaken_s: float) -> None:
    """Have the kernel end a connection whose peer acknowledges nothing, or makes no room, for so long.

    While neither end has anything to say it asks the peer's kernel whether that is there (RFC 9293, section
    3.8.4), so that one may wait for as long as one likes.
    """
    sock: socket.socket = transport.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if sys.platform == "linux":  # elsewhere the system's own durations hold
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, max(1, round(untaken_s / 2)))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, max(1, round(untaken_s / 6)))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(1000 * untaken_s))
