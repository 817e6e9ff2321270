"""A real SuperLink with a scripted ServerApp on it, for the contract tests."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flwr.app import Message

from trellis.flower.link import FlowerLink
from trellis.flower.superlink import SuperLink

APP = Path(__file__).parent / "scripted_app"


@dataclass
class ScriptedApp:
    """The test's end of the ServerApp's socket."""

    run_id: int
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def __call__(self, op: str, **arguments: Any) -> dict[str, Any]:
        self.writer.write(json.dumps({"op": op, **arguments}).encode() + b"\n")
        await self.writer.drain()
        line = await asyncio.wait_for(self.reader.readline(), 90)
        assert line, "the ServerApp ended: see apps.log"
        answer: dict[str, Any] = json.loads(line)
        return answer

    async def reply_to(self, message_id: str, *, within_s: float = 90.0) -> dict[str, Any]:
        async with asyncio.timeout(within_s):
            while True:
                for reply in (await self("pull", ids=[message_id]))["replies"]:
                    return dict(reply)
                await asyncio.sleep(0.05)


@dataclass
class Federation:
    """A SuperLink, the address of its front, and the app on it."""

    superlink: SuperLink
    front: str
    app: ScriptedApp


async def connected(federation: Federation, folder: Path) -> FlowerLink:
    link = FlowerLink(federation.front, folder=folder, tls=None)
    await asyncio.to_thread(link.connect)
    return link


async def pulled(link: FlowerLink) -> Message:
    async with asyncio.timeout(90):
        while (message := await asyncio.to_thread(link.pull)) is None:  # noqa: ASYNC110 - a poll is what is tested
            await asyncio.sleep(0.02)
    return message


_LONGEST_PATH = 100
_NUMBERS = itertools.count(1)


@asynccontextmanager
async def scripted_app(superlink: SuperLink, folder: Path) -> AsyncIterator[ScriptedApp]:
    connected: asyncio.Future[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Future()

    async def on_connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not connected.done():
            connected.set_result((reader, writer))

    # A socket's path has 108 bytes at most, and pytest's own folders may take most of them.
    name = f"app-{superlink.pid}-{next(_NUMBERS)}.sock"
    path = folder / name if len(str(folder / name)) < _LONGEST_PATH else Path("/tmp") / name
    server = await asyncio.start_unix_server(on_connection, path=path, limit=2**24)
    try:
        run_id = await superlink.submit(APP, {"socket": str(path)})
        reader, writer = await asyncio.wait_for(connected, 90)
        yield ScriptedApp(run_id, reader, writer)
        writer.close()
    finally:
        server.close()
        path.unlink(missing_ok=True)
