"""FlowerLink against a real SuperLink behind the front: everything of Flower that is not public."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from flower_parts import Federation, connected, pulled, scripted_app
from flwr.app import Error, Message
from flwr.supernode.fleet_http_client import FleetHttpClient
from reserved_ports import ReservedPorts

from trellis.errors import Refused, Unavailable
from trellis.flower.front import FleetFront
from trellis.flower.link import FlowerLink
from trellis.flower.superlink import SuperLink
from trellis.http.server import HttpServer
from trellis.tensors import unpack_arrays

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(180)]

DEVICE = Path(__file__).parent / "crashing_device.py"


async def test_a_model_of_50_mb_makes_the_round_trip(federation: Federation, tmp_path: Path) -> None:
    link = await connected(federation, tmp_path)
    floats = 50 * 1024 * 1024 // 4
    sent = await federation.app("push", node=link.node_id, type="train", floats=floats)
    message = await pulled(link)
    arrays = unpack_arrays(message.content["arrays"])
    assert arrays["w"].nbytes == 50 * 1024 * 1024
    assert float(arrays["w"].sum(dtype=np.float64)) == floats
    await asyncio.to_thread(link.push, Message(message.content, reply_to=message))
    reply = await federation.app.reply_to(sent["id"])
    assert (reply["error"], reply["sum"]) == (None, float(floats))
    await asyncio.to_thread(link.close, deactivate=True)


async def test_after_sigkill_the_node_id_is_back_within_two_seconds_and_the_pending_message_is_answered(
    federation: Federation, tmp_path: Path
) -> None:
    process = subprocess.Popen(
        [sys.executable, str(DEVICE), federation.front, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        node_id = json.loads(await asyncio.to_thread(process.stdout.readline))["node_id"]
        sent = await federation.app("push", node=node_id, type="train", floats=100)
        assert json.loads(await asyncio.to_thread(process.stdout.readline)) == {"pulled": sent["id"]}
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    started = time.monotonic()
    link = await connected(federation, tmp_path)
    assert time.monotonic() - started < 2.0
    assert link.node_id == node_id
    message = await asyncio.to_thread(link.pull)
    assert message is not None
    assert message.metadata.message_id == sent["id"]
    await asyncio.to_thread(link.push, Message(message.content, reply_to=message))
    reply = await federation.app.reply_to(sent["id"])
    assert (reply["error"], reply["sum"], reply["src"]) == (None, 100.0, node_id)
    assert await asyncio.to_thread(link.pull) is None, "an answered message must leave the inbox"
    await asyncio.to_thread(link.close, deactivate=True)


async def test_a_reply_uploaded_by_a_device_that_then_vanishes_is_counted(
    federation: Federation, tmp_path: Path
) -> None:
    process = subprocess.Popen(
        [sys.executable, str(DEVICE), federation.front, str(tmp_path), "--answer"],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        node_id = json.loads(await asyncio.to_thread(process.stdout.readline))["node_id"]
        sent = await federation.app("push", node=node_id, type="train", floats=7)
        assert json.loads(await asyncio.to_thread(process.stdout.readline)) == {"pulled": sent["id"]}
        assert json.loads(await asyncio.to_thread(process.stdout.readline)) == {"pushed": sent["id"]}
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    reply = await federation.app.reply_to(sent["id"])
    assert (reply["error"], reply["sum"]) == (None, 7.0)


async def test_an_upload_that_was_cut_is_finished_by_the_same_answer(
    federation: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = await connected(federation, tmp_path)
    sent = await federation.app("push", node=link.node_id, type="train", floats=9)
    message = await pulled(link)
    push_object, pushed = FleetHttpClient.PushObject, []

    def cut(self: FleetHttpClient, request: Any) -> Any:
        if len(pushed) == 2:
            raise httpx.ReadError("the connection is cut")
        pushed.append(request)
        return push_object(self, request)

    with monkeypatch.context() as patched:
        patched.setattr(FleetHttpClient, "PushObject", cut)
        with pytest.raises(Unavailable, match="the connection is cut"):
            await asyncio.to_thread(link.push, Message(message.content, reply_to=message))
    await asyncio.to_thread(link.close, deactivate=False)
    # As after a crash: another process, which answers the same from its journal.
    link = await connected(federation, tmp_path)
    again = await pulled(link)
    assert again.metadata.message_id == sent["id"]
    await asyncio.to_thread(link.push, Message(again.content, reply_to=again))
    reply = await federation.app.reply_to(sent["id"])
    assert (reply["error"], reply["sum"]) == (None, 9.0)
    await asyncio.to_thread(link.close, deactivate=True)


async def test_a_message_that_is_cut_while_it_comes_costs_what_was_on_its_way(
    federation: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = await connected(federation, tmp_path)
    sent = await federation.app("push", node=link.node_id, type="train", floats=9)
    pull_object, pulled_objects = FleetHttpClient.PullObject, []

    def cut(self: FleetHttpClient, request: Any) -> Any:
        if len(pulled_objects) == 2:
            raise httpx.ReadError("the connection is cut")
        pulled_objects.append(request.object_id)
        return pull_object(self, request)

    def whole(self: FleetHttpClient, request: Any) -> Any:
        pulled_objects.append(request.object_id)
        return pull_object(self, request)

    monkeypatch.setattr("trellis.flower.incoming.pull_objects", one_by_one)
    with monkeypatch.context() as patched:
        patched.setattr(FleetHttpClient, "PullObject", cut)
        with pytest.raises(Unavailable, match="the connection is cut"):
            await pulled(link)
    assert link.in_hand == {sent["id"]}
    monkeypatch.setattr(FleetHttpClient, "PullObject", whole)
    await asyncio.to_thread(link.connect)
    message = await pulled(link)
    assert message.metadata.message_id == sent["id"]
    assert len(pulled_objects) == len(set(pulled_objects)) > 2, "none comes twice"
    await asyncio.to_thread(link.push, Message(message.content, reply_to=message))
    assert (await federation.app.reply_to(sent["id"]))["sum"] == 9.0
    assert not link.in_hand
    await asyncio.to_thread(link.close, deactivate=True)


def one_by_one(object_ids: list[str], pull: Any, **_: Any) -> dict[str, bytes]:
    """As Flower's, which pulls several at once: so that a cut finds some that have come."""
    return {object_id: pull(object_id) for object_id in object_ids}


async def test_a_reply_whose_last_acknowledgement_was_lost_is_there(
    federation: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = await connected(federation, tmp_path)
    sent = await federation.app("push", node=link.node_id, type="train", floats=9)
    message = await pulled(link)
    push_object, pushed = FleetHttpClient.PushObject, []

    def deaf(self: FleetHttpClient, request: Any) -> Any:
        pushed.append(push_object(self, request))
        raise httpx.ReadError("the answer is lost")

    answer = Message(message.content, reply_to=message)

    async def push_until_wanted_no_more() -> None:
        # Each try leaves one object more, until all are there and the SuperLink wants none.
        while True:
            with contextlib.suppress(Unavailable):
                await asyncio.to_thread(link.push, answer)

    with monkeypatch.context() as patched:
        patched.setattr(FleetHttpClient, "PushObject", deaf)
        with pytest.raises(Refused):
            await asyncio.wait_for(push_until_wanted_no_more(), 90)
    assert len(pushed) >= 3
    reply = await federation.app.reply_to(sent["id"])
    assert (reply["error"], reply["sum"]) == (None, 9.0)
    await asyncio.to_thread(link.close, deactivate=True)


async def test_a_kept_message_that_cannot_be_read_does_not_stand_before_the_others(
    federation: Federation, tmp_path: Path
) -> None:
    link = await connected(federation, tmp_path)
    await federation.app("push", node=link.node_id, type="train", floats=4)
    await pulled(link)
    await asyncio.to_thread(link.close, deactivate=False)
    (kept,) = (tmp_path / "inbox").glob("*.message")
    head, _, body = kept.read_bytes().partition(b"\n")
    kept.write_bytes(head + b"\n" + b"x" * len(body))
    link = await connected(federation, tmp_path)
    sent = await federation.app("push", node=link.node_id, type="train", floats=5)
    message = await pulled(link)
    assert message.metadata.message_id == sent["id"]
    assert [path.name for path in (tmp_path / "inbox").glob("*.message")] == [f"{sent['id']}.message"]
    await asyncio.to_thread(link.close, deactivate=True)


async def test_a_reply_that_the_superlink_refuses_is_noticed(federation: Federation, tmp_path: Path) -> None:
    link = await connected(federation, tmp_path)
    sent = await federation.app("push", node=link.node_id, type="train", floats=3)
    message = await pulled(link)
    await asyncio.to_thread(link.push, Message(message.content, reply_to=message))
    assert (await federation.app.reply_to(sent["id"]))["sum"] == 3.0
    with pytest.raises(Refused, match="did not take the reply") as refused:
        await asyncio.to_thread(link.push, Message(message.content, reply_to=message))
    assert refused.value.code == "reply"
    await asyncio.to_thread(link.close, deactivate=True)


async def test_a_message_whose_run_has_ended_is_refused_once_and_forgotten(tmp_path: Path) -> None:
    async with (
        SuperLink(folder=tmp_path / "superlink") as superlink,
        HttpServer(FleetFront(superlink.address), host="127.0.0.1", port=0, tls=None) as front,
        scripted_app(superlink, tmp_path) as app,
    ):
        link = FlowerLink(f"127.0.0.1:{front.port}", folder=tmp_path / "device", tls=None)
        node_id = await asyncio.to_thread(link.connect)
        await app("push", node=node_id, type="train", floats=3)
        message = await pulled(link)
        await superlink.stop_run(app.run_id)
        with pytest.raises(Refused, match="did not take the reply") as refused:
            await asyncio.to_thread(link.push, Message(message.content, reply_to=message))
        assert refused.value.code == "reply"
        assert await asyncio.to_thread(link.connect) == node_id
        assert await asyncio.to_thread(link.pull) is None, "it does not come back out of the inbox"
        await asyncio.to_thread(link.close, deactivate=True)


async def test_an_error_raised_in_training_arrives_at_the_server_as_that_error(
    federation: Federation, tmp_path: Path
) -> None:
    link = await connected(federation, tmp_path)
    sent = await federation.app("push", node=link.node_id, type="train", floats=3)
    message = await pulled(link)
    error = Error(code=100, reason="loss is NaN at step 7")
    await asyncio.to_thread(link.push, Message(error, reply_to=message))
    reply = await federation.app.reply_to(sent["id"])
    assert reply["error"] == [100, "loss is NaN at step 7"]
    await asyncio.to_thread(link.close, deactivate=True)


async def test_a_node_whose_id_was_lost_comes_back_as_a_new_node(
    federation: Federation, tmp_path: Path
) -> None:
    link = await connected(federation, tmp_path)
    first = link.node_id
    await asyncio.to_thread(link.close, deactivate=False)
    (tmp_path / "node-id.json").unlink()
    link = await connected(federation, tmp_path)
    assert link.node_id != first
    assert await asyncio.to_thread(link.pull) is None
    await asyncio.to_thread(link.close, deactivate=True)


async def test_the_node_key_is_readable_by_its_owner_only(federation: Federation, tmp_path: Path) -> None:
    link = await connected(federation, tmp_path)
    assert (tmp_path / "node.pem").stat().st_mode & 0o777 == 0o600
    await asyncio.to_thread(link.close, deactivate=True)


async def test_a_superlink_started_anew_takes_the_device_as_a_new_node(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    reserved = ReservedPorts(1)  # nobody is given it while the SuperLink is away
    request.addfinalizer(reserved.release)
    (port,) = reserved.numbers
    link: FlowerLink | None = None
    nodes = []
    for _ in range(2):
        async with (
            SuperLink(folder=tmp_path / "superlink") as superlink,
            HttpServer(FleetFront(superlink.address), host="127.0.0.1", port=port, tls=None),
        ):
            if link is None:
                link = FlowerLink(f"127.0.0.1:{port}", folder=tmp_path / "device", tls=None)
            else:
                with pytest.raises(Unavailable):
                    await asyncio.to_thread(link.pull)
            nodes.append(await asyncio.to_thread(link.connect))
            assert await asyncio.to_thread(link.pull) is None
    assert len(set(nodes)) == 2
    with pytest.raises(Unavailable, match="does not answer"):
        await asyncio.to_thread(link.pull)
    await asyncio.to_thread(link.close, deactivate=False)
