"""A task from its post to its model, with two regions and three devices."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import pytest_asyncio
from federation import Device, Federation
from members import command_line
from safetensors.numpy import load_file

from trellis.mqtt import BrokerSettings, MqttBus

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(400)]

DEVICES = (Device("d1", "eu-1"), Device("d2", "eu-1"), Device("d3", "us-1"))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fleet(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Federation]:
    async with Federation(tmp_path_factory.mktemp("life") / "fleet", devices=DEVICES, cold=True) as started:
        yield started


BOOKMARK = "bookmark"


@dataclass(frozen=True)
class Line:
    """One line of `mosquitto_sub`: whether the broker had kept the message, its topic, its payload."""

    retained: bool
    topic: str
    payload: dict[str, Any]


@asynccontextmanager
async def mosquitto_sub(fleet: Federation) -> AsyncIterator[list[str]]:
    """Collect an ordinary client's lines from the moment that it is subscribed."""
    port = fleet.broker_url.rpartition(":")[2]
    arguments = ("-h", "127.0.0.1", "-p", port, "-t", "trellis/v1/#", "-F", "%r %t %p")
    process = await asyncio.create_subprocess_exec(
        "mosquitto_sub", *arguments, stdout=asyncio.subprocess.PIPE, limit=2**20
    )
    lines: list[str] = []

    async def read() -> None:
        assert process.stdout is not None
        while line := await process.stdout.readline():
            lines.append(line.decode().rstrip("\n"))

    reading = asyncio.create_task(read())
    try:
        await shown(lines, "central/state")
        yield lines
    finally:
        process.terminate()
        await process.wait()
        await reading


async def shown(lines: list[str], *topics: str) -> None:
    """Return once a client has printed messages on all of these topics."""
    async with asyncio.timeout(60):
        while not set(topics) <= {parsed(line).topic for line in lines}:  # noqa: ASYNC110 - foreign output
            await asyncio.sleep(0.05)


async def up_to_date(fleet: Federation, lines: list[str]) -> None:
    """Return once a client has printed all that the broker has had up to now: it sends in order."""
    async with MqttBus(BrokerSettings(fleet.broker_url, "bookmark")) as bus:
        await bus.wait_connected(60)
        await bus.publish(f"trellis/v1/{BOOKMARK}", b"{}")
    await shown(lines, BOOKMARK)


def parsed(line: str) -> Line:
    retained, topic, payload = line.split(" ", 2)
    return Line(retained == "1", topic.removeprefix("trellis/v1/"), json.loads(payload))


async def test_its_members_are_interpreters_that_have_imported_nothing_before(fleet: Federation) -> None:
    for member in fleet.members:
        assert f"-m trellis {member.arguments[0]}" in command_line(psutil.Process(member.pid))


async def test_an_ordinary_client_reads_the_whole_life_of_a_task(fleet: Federation) -> None:
    everywhere = {
        "central/state",
        "central/tasks/seen/state",
        "central/tasks/seen/round",
        *(f"{region}/gateway/state" for region in fleet.regions),
        *(
            f"{region}/tasks/seen/{kind}"
            for region in fleet.regions
            for kind in ("descriptor", "status", "round")
        ),
        *(
            f"{device.path}/{kind}"
            for device in DEVICES
            for kind in ("state", "info", "tasks/seen/execution")
        ),
    }
    # Long enough to be seen in training: progress comes once a second.
    train = {"rounds": 2, "local_epochs": 150}
    async with mosquitto_sub(fleet) as lines:
        await fleet.submit("seen", train=train, evaluate={"on": ["server", "devices"]})
        await fleet.ended("seen")
        for device in fleet.specs:
            await fleet.mqtt.field(fleet.execution(device, "seen"), "state", "SUCCEEDED")
        for region, count in (("eu-1", 2), ("us-1", 1)):
            await fleet.mqtt.field(f"{region}/tasks/seen/status", "executions", {"SUCCEEDED": count})
        for topic in ("central/tasks/seen/round", "us-1/tasks/seen/round"):
            await fleet.mqtt.until(
                lambda topic=topic: done_in(fleet, topic) == 2, f"{topic}: round 2 is done"
            )
        await up_to_date(fleet, lines)
        async with mosquitto_sub(fleet) as late:
            await shown(late, *everywhere)
    live, kept = [parsed(line) for line in lines], [parsed(line) for line in late]
    live = [line for line in live if line.topic != BOOKMARK]
    assert not any(line.retained for line in live if "seen" in line.topic), "what is said now is not flagged"
    kept = [line for line in kept if line.retained]  # the goodbyes of the task may still be under way
    progress = {f"{device.path}/tasks/seen/progress" for device in DEVICES}
    assert everywhere <= {line.topic for line in kept}
    assert progress <= {line.topic for line in live}
    assert not progress & {line.topic for line in kept}, "progress is not retained"
    check_story(live)


def done_in(fleet: Federation, topic: str) -> int | None:
    """Return the round that a topic shows as done."""
    stands = fleet.mqtt.latest.get(topic, {})
    return stands["round"] if stands.get("phase") == "done" else None


def check_story(live: list[Line]) -> None:
    """What is said of the task, topic by topic, is its life in order."""

    def said(topic: str, name: str) -> list[Any]:
        values = [line.payload.get(name) for line in live if line.topic == topic]
        return [
            value
            for n, value in enumerate(values)
            if value is not None and (n == 0 or values[n - 1] != value)
        ]

    assert all({"schema", "ts"} <= line.payload.keys() for line in live if "descriptor" not in line.topic)
    states = said("central/tasks/seen/state", "state")
    assert [s for s in states if s != "gathering"] == ["posted", "running", "finishing", "succeeded"]
    envelope = next(line.payload for line in live if line.topic == "eu-1/tasks/seen/descriptor")
    assert json.loads(envelope["payload"])["task"] == "seen"
    assert envelope["signatures"][0]["sig"]
    for device in DEVICES:
        execution = f"{device.path}/tasks/seen/execution"
        assert said(execution, "state")[-1] == "SUCCEEDED"
        phases = said(execution, "phase")
        in_order = ["verifying", "connecting", "waiting", "training", "uploaded", "evaluating", "uploaded"]
        assert [p for p in phases if p in in_order][: len(in_order)] == in_order, phases
        versions = said(execution, "version")
        assert versions == sorted(versions)
        progress = [line.payload for line in live if line.topic == f"{device.path}/tasks/seen/progress"]
        assert all(0 < one["step"] <= one["steps"] and one["samples"] > 0 for one in progress)
    for topic in ("central/tasks/seen/round", "us-1/tasks/seen/round"):
        rounds = [line.payload for line in live if line.topic == topic]
        done = {one["round"]: one for one in rounds if one["phase"] == "done"}
        assert sorted(done) == [1, 2]
        assert all(one["replied"] == 3 and one["bytes_up"] > 0 and one["loss"] > 0 for one in done.values())
        assert {"train", "evaluate", "done"} <= {one["phase"] for one in rounds}
    status = [line.payload for line in live if line.topic == "eu-1/tasks/seen/status"]
    assert any(one.get("executions") == {"IN_PROGRESS": 2} for one in status)
    assert status[-1]["executions"] == {"SUCCEEDED": 2}


async def test_task_run_follows_a_task_to_its_model(fleet: Federation) -> None:
    ran = await fleet.operator("task", "run", fleet.task("ran"), "--json")
    assert ran.code == 0, ran
    summary = json.loads(ran.out)
    assert (summary["state"], summary["round"]) == ("succeeded", 2)
    check_model(await fleet.model("ran"), summary["accuracy"])
    got = await fleet.operator("model", "get", "ran", "-o", "got.safetensors")
    assert got.code == 0, got
    measured = await fleet.ground.command(
        "model", "evaluate", "got.safetensors", "--data", "digits", "--json"
    )
    assert json.loads(measured.out)["accuracy"] == pytest.approx(summary["accuracy"], abs=1e-9)


def check_model(file: Path, accuracy: float) -> None:
    tensors = load_file(file)
    assert sorted(tensor.shape for tensor in tensors.values()) == [(10,), (10, 64)]
    assert all(np.isfinite(tensor).all() for tensor in tensors.values())
    assert accuracy > 0.7  # two rounds of softmax on digits: 0.8 to 0.9; chance is 0.1


async def test_a_server_started_with_a_task_and_task_post_give_a_model(fleet: Federation) -> None:
    file = fleet.task("handed")
    assert await fleet.server.stop() == 0
    # The server signs nothing: the operator's key lies in the folder of all keys, as in a trial at home.
    fleet.server.start("--task", file)
    await fleet.until("handed", lambda view: view["state"] in ("posted", "gathering"), "posted")
    gateways = [part for url in fleet.gateway_urls.values() for part in ("--gateway", url)]
    posted = await fleet.operator("task", "post", file, *gateways)
    assert posted.code == 0, posted
    view = await fleet.ended("handed")
    check_model(await fleet.model("handed"), view["metrics"]["server_accuracy"])


@pytest.mark.parametrize("strategy", [pytest.param("fedprox", marks=pytest.mark.long), "fedadam"])
async def test_a_strategy_trains_end_to_end(fleet: Federation, strategy: str) -> None:
    params = {"fedprox": {"proximal_mu": 0.1}, "fedadam": {"eta": 0.05}}[strategy]
    await fleet.submit(strategy, strategy={"name": strategy, "params": params}, train={"rounds": 3})
    view = await fleet.ended(strategy)
    losses = [one["loss"] for one in view["history"]]
    assert len(losses) == 3
    assert losses[-1] < losses[0]


async def test_a_task_that_has_reached_its_target_ends_before_its_last_round(fleet: Federation) -> None:
    await fleet.submit("target", train={"rounds": 30}, stop={"target": 0.8})
    view = await fleet.ended("target")
    accuracies = [one["metrics"]["server_accuracy"] for one in view["history"]]
    assert accuracies[-1] >= 0.8
    assert all(accuracy < 0.8 for accuracy in accuracies[:-1])
    assert view["round"] == len(accuracies) < 30
    assert view["reason"] is not None
    assert "0.8" in view["reason"]["message"]
    for name in fleet.specs:
        await fleet.mqtt.field(fleet.execution(name, "target"), "state", "SUCCEEDED")
    check_model(await fleet.model("target"), accuracies[-1])
