"""SupernodeLink with the stock `flower-supernode` against a real SuperLink, through a front with TLS."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest
import pytest_asyncio
from flower_parts import scripted_app
from flwr.app import Message
from members import command_line, is_running

from trellis.errors import Refused, Unavailable
from trellis.flower.front import FleetFront
from trellis.flower.superlink import SuperLink
from trellis.flower.supernode import SupernodeLink
from trellis.http.server import HttpServer
from trellis.keys.authority import create_authority, issue
from trellis.keys.identity import Identity, find_identity
from trellis.keys.principals import SERVER, device
from trellis.loopback import free_ports
from trellis.tensors import unpack_arrays
from trellis.tls import TlsFiles

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(180)]

FLOATS = 6 * 1024**2 // 4
"""More than a parcel holds, and more than one of Flower's chunks."""


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    keys = tmp_path_factory.mktemp("keys") / "keys"
    create_authority(keys, days=30)
    issue(keys, SERVER, ["127.0.0.1"], 30)
    issue(keys, device("eu-1", "d1"), [], 30)
    return keys


def tls(keys: Path, *role: str) -> TlsFiles:
    return Identity.load(find_identity(keys, *role)).tls


@asynccontextmanager
async def served(folder: Path, keys: Path, port: int) -> AsyncIterator[SuperLink]:
    """A SuperLink behind a front that lets in nobody without a certificate."""
    async with SuperLink(folder=folder) as superlink:
        front = FleetFront(superlink.address)
        async with HttpServer(front, host="127.0.0.1", port=port, tls=tls(keys, "server")):
            yield superlink
        await front.aclose()


@pytest_asyncio.fixture(loop_scope="module")
async def link(tmp_path: Path, keys: Path, port: int) -> AsyncIterator[SupernodeLink]:
    files = tls(keys, "devices", "eu-1", "d1")
    loop = asyncio.get_running_loop()
    link = SupernodeLink(f"127.0.0.1:{port}", folder=tmp_path / "link", tls=files, loop=loop)
    yield link
    await asyncio.to_thread(link.close, deactivate=True)
    assert [command_line(one) for one in started_by(link)] == []


@pytest.fixture(scope="module")
def port() -> int:
    return free_ports(1)[0]


def started_by(link: SupernodeLink) -> list[psutil.Process]:
    home = str((link._folder / "home").resolve())
    found = psutil.process_iter(["environ"])
    return [one for one in found if (one.info["environ"] or {}).get("FLWR_HOME") == home and is_running(one)]


async def connected(link: SupernodeLink) -> int:
    async with asyncio.timeout(90):
        while True:
            with contextlib.suppress(Unavailable):  # on a busy machine it takes more than one try
                return await asyncio.to_thread(link.connect)


async def pulled(link: SupernodeLink) -> Message:
    async with asyncio.timeout(90):
        while (message := await asyncio.to_thread(link.pull)) is None:
            pass
    return message


async def test_messages_and_replies_go_through_the_supernode(
    link: SupernodeLink, tmp_path: Path, keys: Path, port: int
) -> None:
    async with (
        served(tmp_path / "superlink", keys, port) as superlink,
        scripted_app(superlink, tmp_path) as app,
    ):
        node_id = await connected(link)
        assert (await app("nodes"))["nodes"] == [node_id]
        sent = await app("push", node=node_id, type="train", floats=FLOATS)
        message = await pulled(link)
        assert (message.metadata.message_id, message.metadata.message_type) == (sent["id"], "train")
        assert message.metadata.run_id == app.run_id
        assert float(unpack_arrays(message.content["arrays"])["w"].sum()) == FLOATS
        assert await asyncio.to_thread(link.push, Message(message.content, reply_to=message)) == sent["id"]
        # Once pushed it is there: whoever is told so need not ask twice.
        (reply,) = (await app("pull", ids=[sent["id"]]))["replies"]
        assert (reply["error"], reply["sum"], reply["src"]) == (None, float(FLOATS), node_id)
        with pytest.raises(Refused, match="has ended"):
            await asyncio.to_thread(link.push, Message(message.content, reply_to=message))


async def test_a_supernode_that_died_is_followed_by_another(
    link: SupernodeLink, tmp_path: Path, keys: Path, port: int
) -> None:
    async with served(tmp_path / "superlink", keys, port):
        first = await connected(link)
        (supernode,) = [one for one in started_by(link) if "flower-supernode" in command_line(one)]
        os.kill(supernode.pid, signal.SIGKILL)
        with pytest.raises(Unavailable, match="ended with status -9"):
            await pulled(link)
        assert [command_line(one) for one in started_by(link)] == [], "nothing of the first is left"
        assert await connected(link) != first


@pytest.mark.long
async def test_a_server_that_begins_anew_is_joined_anew(
    link: SupernodeLink, tmp_path: Path, keys: Path, port: int
) -> None:
    with pytest.raises(Unavailable, match="has not registered"):
        await asyncio.to_thread(link.connect)
    async with served(tmp_path / "first", keys, port):
        first = await connected(link)
    folder = tmp_path / "second"
    async with served(folder, keys, port) as superlink, scripted_app(superlink, tmp_path) as app:
        with pytest.raises(Unavailable, match="flower-supernode"):
            await pulled(link)
        second = await connected(link)
        assert second != first
        assert (await app("nodes"))["nodes"] == [second]
