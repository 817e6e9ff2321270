"""Counts what goes over a TCP connection: bytes each way, HTTP requests by path, MQTT packets by kind."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any, Protocol, Self

_CHUNK = 65536
# MQTT 5.0, table 2-1, by the packet type's number.
_MQTT_KINDS = (
    *("RESERVED", "CONNECT", "CONNACK", "PUBLISH", "PUBACK", "PUBREC", "PUBREL", "PUBCOMP"),
    *("SUBSCRIBE", "SUBACK", "UNSUBSCRIBE", "UNSUBACK", "PINGREQ", "PINGRESP", "DISCONNECT", "AUTH"),
)

Feed = Callable[[bytes], None]


class Counts(Protocol):
    """Reads a stream's messages; one for a proxy, with a reader for each direction of each connection."""

    counter: Counter[str]

    def reader(self, *, up: bool) -> Feed: ...


class MqttCounts:
    """Packets by kind, such as `up PUBLISH`; both MQTT 3.1.1 and 5 frame them so (section 2.1)."""

    def __init__(self) -> None:
        self.counter: Counter[str] = Counter()

    def reader(self, *, up: bool) -> Feed:
        direction = "up" if up else "down"
        held = bytearray()

        def feed(data: bytes) -> None:
            held.extend(data)
            while (size := _packet_size(held)) is not None and len(held) >= size:
                self.counter[f"{direction} {_MQTT_KINDS[held[0] >> 4]}"] += 1
                del held[:size]

        return feed


class HttpCounts:
    """Requests by path; bodies are passed over by their Content-Length, which Flower's client sends."""

    def __init__(self) -> None:
        self.counter: Counter[str] = Counter()

    def reader(self, *, up: bool) -> Feed:
        held = bytearray()
        skip = 0

        def feed(data: bytes) -> None:
            nonlocal skip
            if not up:
                return
            held.extend(data)
            while held:
                if skip:
                    passed = min(skip, len(held))
                    del held[:passed]
                    skip -= passed
                    continue
                head, found, _ = bytes(held).partition(b"\r\n\r\n")
                if not found:
                    return
                self.counter[head.split(b" ", 2)[1].decode()] += 1
                skip = _content_length(head)
                del held[: len(head) + 4]

        return feed


class CountingProxy:
    """A TCP proxy to a port of this machine, in a thread of its own, from `__enter__` to `__exit__`.

    Attributes:
        counts: What was counted; `bytes_up` and `bytes_down` are its bytes, as a client sees them.
    """

    def __init__(self, upstream_port: int, counts: Counts) -> None:
        self.counts = counts
        self.bytes_up = self.bytes_down = 0
        self.port = 0
        self._upstream_port = upstream_port
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="counting proxy", daemon=True)
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[Any]] = set()

    def __enter__(self) -> Self:
        self._thread.start()
        self._in_loop(self._listen())
        return self

    def __exit__(self, *_: object) -> None:
        self._in_loop(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5.0)
        self._loop.close()

    def snapshot(self) -> Counter[str]:
        """Return the counts of now, bytes among them."""
        return self.counts.counter + Counter({"bytes up": self.bytes_up, "bytes down": self.bytes_down})

    def _in_loop(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10.0)

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _stop(self) -> None:
        if self._server is not None:
            self._server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None:
            self._connections.add(task)
            task.add_done_callback(self._connections.discard)
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._upstream_port)
        except OSError:
            writer.close()
            return
        ways = [
            asyncio.create_task(self._pass(reader, far_writer, up=True)),
            asyncio.create_task(self._pass(far_reader, writer, up=False)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            return  # by `_stop` alone; asyncio's server reports a handler that is canceled as an error
        finally:
            for way in ways:
                way.cancel()
            writer.close()
            far_writer.close()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, up: bool) -> None:
        feed = self.counts.reader(up=up)
        try:
            while data := await reader.read(_CHUNK):
                if up:
                    self.bytes_up += len(data)
                else:
                    self.bytes_down += len(data)
                feed(data)
                writer.write(data)
                await writer.drain()
        except OSError:
            return


def _packet_size(held: bytearray) -> int | None:
    """Return the whole size of the packet that begins `held`, or None while its length is not there."""
    length = 0
    for position in range(1, min(5, len(held))):
        length |= (held[position] & 0x7F) << 7 * (position - 1)
        if not held[position] & 0x80:
            return 1 + position + length
    return None


def _content_length(head: bytes) -> int:
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-length":
            return int(value)
        if name.strip().lower() == b"transfer-encoding":
            raise ValueError("a request with a chunked body cannot be counted")
    return 0
