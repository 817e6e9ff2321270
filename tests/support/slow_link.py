"""A bad link: a TCP proxy that is slow, narrow, and cuts connections at random.

The kernel has netem for that, but not every kernel.
"""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass
from typing import Self

_READ_BYTES = 1460
"""What an Ethernet frame holds of a TCP stream: a cut falls between two of these, in the midst of a body."""
_QUEUE_S = 0.5
"""How much a direction holds back before its senders feel it."""


@dataclass(frozen=True)
class Line:
    """How bad a link is.

    Attributes:
        latency_s: Each way.
        bits_per_s: In each direction, shared by all connections.
        lives_s: A connection is cut after so many seconds on the mean, exponentially distributed.
        least_s: And not before so many.
        seed: Draws the lives, in the order in which connections come.
    """

    latency_s: float = 0.1
    bits_per_s: float = 1_000_000.0
    lives_s: float = 6.0
    least_s: float = 1.0
    seed: int = 7


class _Direction:
    """One direction's bandwidth: says when a piece that comes now arrives at the other end."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self._free_at = 0.0

    async def arrival(self, size: int) -> float:
        now = time.monotonic()
        self._free_at = max(now, self._free_at) + size * 8 / self._line.bits_per_s
        if (early_s := self._free_at - now - _QUEUE_S) > 0:
            await asyncio.sleep(early_s)
        return self._free_at + self._line.latency_s


class SlowLink:
    """Listens on `port` of 127.0.0.1 and passes on to `target`, from `__aenter__` to `__aexit__`.

    Attributes:
        port: Where it listens, once entered: for 0 it is a free one.
        cuts: How many connections were cut.
        carried: Bytes up and down that have arrived.
    """

    def __init__(self, port: int, target: int, line: Line) -> None:
        self.port, self._target, self._line = port, target, line
        self._up, self._down = _Direction(line), _Direction(line)
        self._lives = random.Random(line.seed)
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self.cuts = 0
        self.carried = {"up": 0, "down": 0}

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = int(self._server.sockets[0].getsockname()[1])
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._server is not None:
            self._server.close()
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        life_s = self._line.least_s + self._lives.expovariate(1 / self._line.lives_s)
        connection = asyncio.create_task(self._serve(reader, writer, life_s), name=f"link {self.port}")
        self._connections.add(connection)
        connection.add_done_callback(self._connections.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, life_s: float) -> None:
        try:
            async with asyncio.timeout(life_s):
                await self._carry(reader, writer)
        except TimeoutError:
            self.cuts += 1
        except OSError:
            pass  # one of the two ends has gone
        finally:
            writer.transport.abort()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, onward = await asyncio.open_connection("127.0.0.1", self._target)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump(reader, onward, self._up, "up"))
                group.create_task(self._pump(there, writer, self._down, "down"))
        except* OSError:
            pass
        finally:
            onward.transport.abort()

    async def _pump(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        direction: _Direction,
        name: str,
    ) -> None:
        """Pass on what comes, each piece at its time, and then the end."""
        on_the_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

        async def deliver() -> None:
            while True:
                at, piece = await on_the_way.get()
                await asyncio.sleep(at - time.monotonic())
                if not piece:
                    writer.write_eof()
                    return
                writer.write(piece)
                await writer.drain()
                self.carried[name] += len(piece)

        delivering = asyncio.create_task(deliver())
        try:
            while piece := await reader.read(_READ_BYTES):
                on_the_way.put_nowait((await direction.arrival(len(piece)), piece))
            on_the_way.put_nowait((await direction.arrival(0), b""))
            await delivering
        finally:
            delivering.cancel()
