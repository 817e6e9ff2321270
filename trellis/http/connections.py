"""One connection of a server: whose it is, and when nobody is there any more."""

from __future__ import annotations

import asyncio
import logging
import time
from email.utils import formatdate
from functools import lru_cache
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from trellis.silence import SILENCE_S, UNTAKEN_S, end_when_untaken

logger = logging.getLogger(__name__)

_LOOKS = 4
"""How often one looks within `SILENCE_S` whether something came."""


# Named, where uvicorn's own choice is whatever is installed: llhttp refuses what can be read in two ways.
class PeerProtocol(HttpToolsProtocol):
    """uvicorn's protocol; `scope["state"]` has the peer's `principal`, None without TLS, and `abort`.

    A peer that owes a request, or the rest of one, and sends nothing for `SILENCE_S`, is cut off, and its
    request ends with `http.disconnect`. uvicorn has a deadline between two requests only, and that begins
    here once an answer has been taken: it may be large, and its reader slow.
    """

    app_state: dict[str, Any]

    def connection_made(  # type: ignore[override]  # as uvicorn's
        self, transport: asyncio.Transport
    ) -> None:
        """Take a connection whose handshake is over."""
        super().connection_made(transport)
        self.app_state = {
            **self.app_state,
            "principal": _peer(transport),
            "abort": transport.abort,
        }
        end_when_untaken(transport, UNTAKEN_S)
        self._came, self._silent = False, 0
        self._next_look = self.loop.call_later(SILENCE_S / _LOOKS, self._look)

    def data_received(self, data: bytes) -> None:
        """Take what came; the answer says the date of now."""
        self._came = True
        self.server_state.default_headers = [_date(int(time.time())), *self.config.encoded_headers]
        super().data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """Look no longer."""
        self._next_look.cancel()
        super().connection_lost(exc)

    def timeout_keep_alive_handler(self) -> None:
        """Close a connection that is idle, and not one whose last answer still goes out."""
        if _unsent_bytes(self.transport):
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )
        else:
            super().timeout_keep_alive_handler()

    def _look(self) -> None:
        self._silent = self._silent + 1 if self._is_due() and not self._came else 0
        self._came = False
        if self._silent < _LOOKS:
            self._next_look = self.loop.call_later(SILENCE_S / _LOOKS, self._look)
            return
        begun = self.cycle is not None and not self.cycle.response_complete
        owed = self.cycle.scope["raw_path"].decode() if begun else "a request"
        who = self.client[0] if self.client else "unknown"
        logger.warning("%s is cut off: it owes the rest of %s, and was silent for %g s", who, owed, SILENCE_S)
        self.transport.abort()

    def _is_due(self) -> bool:
        if self.flow.read_paused:
            return False  # it is we who do not read
        if self.timeout_keep_alive_task is not None or self.transport.is_closing():
            return False  # it has had its answer, all of it or nearly
        if self.cycle is None or self.cycle.response_complete:
            return True
        return self.cycle.more_body and not self.cycle.waiting_for_100_continue


def _unsent_bytes(transport: asyncio.Transport) -> int:
    """Return how much of what was written the kernel has not got yet.

    A TLS transport counts what it has to encrypt alone: what it has handed to the one below it nobody can
    ask for in public, and closing drops that after `ssl_shutdown_timeout`, of 30 seconds.
    """
    below: asyncio.Transport | None = getattr(getattr(transport, "_ssl_protocol", None), "_transport", None)
    return transport.get_write_buffer_size() + (below.get_write_buffer_size() if below else 0)


@lru_cache(maxsize=1)
def _date(now_s: int) -> tuple[bytes, bytes]:
    return b"date", formatdate(now_s, usegmt=True).encode()


def _peer(transport: asyncio.BaseTransport) -> str | None:
    """Return the name in the peer's certificate, empty if it has none or several; None without TLS."""
    if transport.get_extra_info("sslcontext") is None:
        return None
    subject = (transport.get_extra_info("peercert") or {}).get("subject", ())
    names = [value for part in subject for key, value in part if key == "commonName"]
    return str(names[0]) if len(names) == 1 else ""
