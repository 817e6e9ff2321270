"""The server's HTTP API: what it takes, what it refuses and says, and what it shows."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from tests.central_server.parts import OPERATOR, Launcher, descriptor, signed, until
from trellis.envelope import sign
from trellis.mqtt import MemoryBroker
from trellis.payloads import CentralTask, Execution, ExecutionState, Presence, Round, State, now_ms
from trellis.signing_key import SigningKey

BASE = "trellis/v1"


def error(answer: httpx.Response) -> tuple[int, str, str]:
    body = answer.json()["error"]
    return answer.status_code, body["code"], body["message"]


async def test_a_posted_task_is_stored_shown_and_published(launch: Launcher) -> None:
    async with launch() as running:
        answer = await running.post(descriptor())
        assert (answer.status_code, answer.json()) == (
            201,
            {"task": "digits-mlp", "revision": 1, "state": "posted"},
        )
        view = await running.view()
        assert (view["round"], view["rounds"], view["devices"], view["history"]) == (0, 3, [], [])
        assert 0 <= view["elapsed_s"] < 60
        assert view["descriptor"]["model"] == {"name": "mlp"}
        envelope = json.loads((running.runs / "digits-mlp" / "descriptor.json").read_bytes())
        assert json.loads(envelope["payload"])["task"] == "digits-mlp"
        payload = await retained(running.broker, "central/tasks/digits-mlp/state")
        assert CentralTask.parse(payload).state == "posted"
        state = CentralTask.parse((await running.http.get("/v1/tasks/digits-mlp/state")).content)
        assert state == CentralTask.parse(payload).model_copy(update={"ts": state.ts})
        assert [t["task"] for t in (await running.http.get("/v1/tasks")).json()["tasks"]] == ["digits-mlp"]


async def test_the_same_task_twice_changes_nothing_even_if_signed_anew(launch: Launcher) -> None:
    async with launch() as running:
        await running.post(descriptor(issued_at="2026-01-01T00:00:00Z", expires_at="2036-01-01T00:00:00Z"))
        again = await running.post(descriptor())
        assert (again.status_code, again.json()["revision"]) == (200, 1)
        assert len(running.superlinks[0].runs) <= 1


async def test_revisions_never_go_back_and_never_change_the_work(launch: Launcher) -> None:
    async with launch() as running:
        await running.post(descriptor(revision=3))
        assert error(await running.post(descriptor(revision=2)))[:2] == (409, "revision")
        other = descriptor(revision=3, train={"rounds": 9, "learning_rate": 0.05})
        assert error(await running.post(other))[:2] == (409, "conflict")
        assert error(await running.post(descriptor(revision=4)))[:2] == (409, "conflict")


YEAR = timedelta(days=365)
NOW = datetime.now(UTC)


@pytest.mark.parametrize(
    ("changes", "status", "code", "said"),
    [
        ({"issued_at": NOW + YEAR, "expires_at": NOW + 2 * YEAR}, 403, "clock", "set the clocks"),
        ({"issued_at": NOW - 2 * YEAR, "expires_at": NOW - YEAR}, 403, "expired", "issue it anew"),
        ({"model": {"name": "resnet9000"}}, 403, "model", "resnet9000"),
        ({"strategy": {"name": "fedavgg"}}, 400, "invalid", "fedavg"),
        ({"evaluate": {"on": ["server"]}}, 403, "data", "--data digits=PATH"),
        ({"model": {"name": "lenet5"}}, 400, "invalid", "lenet5"),
    ],
)
async def test_what_the_server_cannot_do_is_refused_with_a_reason(
    launch: Launcher, changes: dict[str, Any], status: int, code: str, said: str
) -> None:
    async with launch() as running:
        found = error(await running.post(descriptor(**changes)))
        assert found[:2] == (status, code)
        assert said in found[2]
        assert not (running.runs / "digits-mlp").exists()


async def test_all_that_is_wrong_with_a_task_is_said_at_once_each_with_its_field(launch: Launcher) -> None:
    wrong: dict[str, Any] = {
        "issued_at": NOW - 2 * YEAR,
        "expires_at": NOW - YEAR,
        "model": {"name": "lenet"},
        "strategy": {"name": "fedavgg"},
        "data": {"name": "digts", "shape": [1, 8, 8], "classes": 10},
        "evaluate": {"on": ["server"]},
    }
    async with launch(data={"digits": "digits"}) as running:
        answer = await running.post(descriptor(**wrong))
        assert error(answer)[:2] == (400, "invalid")
        said = {one["field"]: one["problem"] for one in answer.json()["error"]["faults"]}
    assert list(said) == ["expires_at", "model.name", "strategy.name", "evaluate.on"]
    assert "expired at" in said["expires_at"]
    assert "did you mean 'lenet5'? Known are convnet, gru, lenet5, mlp, mobile-cnn, " in said["model.name"]
    assert "did you mean 'fedavg'?" in said["strategy.name"]
    assert "with 'digts', which has: digits; did you mean 'digits'?" in said["evaluate.on"]


async def test_a_faulty_descriptor_is_told_all_that_the_server_would_refuse_besides(launch: Launcher) -> None:
    posted = json.loads(descriptor(model={"name": "lenet"}, evaluate={"on": ["server"]}).to_json())
    wrong = {"participant": {}, "strategy": {"name": "fedavgg"}, "expires_at": "2026-01-01T00:00:00Z"}
    async with launch() as running:
        body = sign(json.dumps(posted | wrong), OPERATOR).to_bytes()
        answer = await running.http.post("/v1/tasks", content=body)
        assert error(answer)[:2] == (400, "invalid")
        said = {one["field"]: (one["problem"], one["remedy"]) for one in answer.json()["error"]["faults"]}
    assert list(said) == ["participant", "expires_at", "model.name", "strategy.name", "evaluate.on"]
    assert said["participant"] == ("is no field of it", "did you mean 'participants'?")
    assert "did you mean 'lenet5'?" in said["model.name"][0]


async def test_a_task_evaluated_on_the_server_is_taken_where_its_data_is(launch: Launcher) -> None:
    async with launch(data={"digits": "digits"}) as running:
        assert (await running.post(descriptor(evaluate={"on": ["server", "devices"]}))).status_code == 201


async def test_only_pinned_operators_command(launch: Launcher) -> None:
    async with launch() as running:
        assert error(await running.post(descriptor(), SigningKey.generate()))[:2] == (403, "untrusted")
        body = signed(descriptor()).replace(b"digits-mlp", b"digits-mlq")
        assert error(await running.http.post("/v1/tasks", content=body))[:2] == (403, "signature")
        plain = await running.http.post("/v1/tasks", content=descriptor().to_json())
        assert error(plain)[:2] == (400, "invalid")
        assert error(plain)[2].startswith(
            "envelope: is an unsigned task descriptor: `trellis task post` signs it"
        )
        huge = await running.http.post("/v1/tasks", content=b"x" * 300_000)
        assert error(huge)[:2] == (400, "invalid")


async def test_cancel_takes_the_next_revision_alone(launch: Launcher) -> None:
    launch.script = ["obeys"]
    async with launch() as running:
        task = descriptor()
        await running.post(task)
        url = "/v1/tasks/digits-mlp/cancel"
        assert error(await running.http.post(url, content=signed(task)))[:2] == (409, "conflict")
        same = task.model_copy(update={"desired": "canceled"})
        assert error(await running.http.post(url, content=signed(same)))[:2] == (409, "conflict")
        other = descriptor(task="other").canceled()
        assert error(await running.http.post(url, content=signed(other)))[:2] == (409, "conflict")
        answer = await running.http.post(url, content=signed(task.canceled()))
        assert (answer.status_code, answer.json()["revision"]) == (200, 2)
        view = await running.reach("canceled")
        assert view["reason"]["code"] == "canceled"
        again = await running.http.post(url, content=signed(task.canceled()))
        assert (again.status_code, again.json()["state"]) == (200, "canceled")


async def test_unknown_tasks_and_models_not_there_yet_answer_404(launch: Launcher) -> None:
    async with launch() as running:
        for path in ("nope", "nope/state"):
            assert error(await running.http.get(f"/v1/tasks/{path}"))[:2] == (404, "unknown")
        cancel = await running.http.post("/v1/tasks/nope/cancel", content=signed(descriptor().canceled()))
        assert error(cancel)[:2] == (404, "unknown")
        await running.post(descriptor())
        status, code, message = error(await running.http.get("/v1/tasks/digits-mlp/model"))
        assert (status, code) == (404, "unknown")
        assert "it is posted, round 0 of 3" in message


async def test_the_view_shows_the_devices_of_the_tasks_regions(launch: Launcher) -> None:
    async with launch() as running, running.broker.bus("devices") as bus:
        birth = State(state=Presence.ONLINE, boot_id="b", since=1).to_bytes()
        waiting = Execution(state=ExecutionState.IN_PROGRESS, version=1, samples=50).to_bytes()
        for name, region in (("cam-1", "eu-1"), ("cam-2", "us-1"), ("cam-3", "mars-1")):
            device = f"{BASE}/{region}/devices/{name}"
            await bus.publish(f"{device}/tasks/digits-mlp/execution", waiting, retain=True)
            await bus.publish(f"{device}/state", birth, retain=True)
        await bus.publish(f"{BASE}/us-1/devices/cam-9/tasks/digits-mlp/execution", b"{", retain=True)
        await running.post(descriptor())  # after the devices: what is retained counts

        async def both() -> list[Any] | None:
            devices = (await running.view())["devices"]
            return devices if len(devices) == 2 and all(d["online"] for d in devices) else None

        devices = await until(both)
        assert [(d["region"], d["device"], d["samples"]) for d in devices] == [
            ("eu-1", "cam-1", 50),
            ("us-1", "cam-2", 50),
        ]


async def test_gateways_and_health(launch: Launcher) -> None:
    async with launch() as running, running.broker.bus("gateway") as bus:
        state = State(state=Presence.ONLINE, boot_id="b", since=1, api="http://127.0.0.1:8081")
        await bus.publish(f"{BASE}/eu-1/gateway/state", state.to_bytes(), retain=True)

        async def gateways() -> Any:
            return (await running.http.get("/v1/gateways")).json()["gateways"]

        assert await until(gateways) == [
            {"region": "eu-1", "state": "online", "api": "http://127.0.0.1:8081"}
        ]
        await running.post(descriptor())
        health = (await running.http.get("/healthz")).json()
        assert health == {
            "status": "ok",
            "version": health["version"],
            "ts": health["ts"],
            "broker": "connected",
            "superlink": "running",
            "tasks": {"posted": 1},
        }
        assert abs(health["ts"] - now_ms()) < 60_000


async def test_the_servers_presence_is_retained_with_its_url_and_ends_with_it(launch: Launcher) -> None:
    async with launch() as running:
        birth = State.parse(await retained(running.broker, "central/state"))
        assert (birth.state, birth.api) == ("online", running.server.api_url)
    farewell = State.parse(await retained(launch.broker, "central/state"))
    assert (farewell.state, farewell.boot_id) == ("offline", birth.boot_id)


async def test_a_broker_that_lost_its_retained_messages_gets_them_again(launch: Launcher) -> None:
    launch.script = ["works"]
    async with launch() as running:
        await running.post(descriptor())
        await running.reach("succeeded")
        running.broker.stop()
        running.broker.start()
        state = CentralTask.parse(await retained(running.broker, "central/tasks/digits-mlp/state"))
        assert (state.state, state.round) == ("succeeded", 3)
        round = Round.parse(await retained(running.broker, "central/tasks/digits-mlp/round"))
        assert round.round == 3


async def test_a_task_given_at_the_start_begins_at_once(launch: Launcher) -> None:
    launch.script = ["works"]
    async with launch(task=signed(descriptor())) as running:
        await running.reach("succeeded")


async def retained(broker: MemoryBroker, topic: str) -> bytes:
    async with (
        broker.bus("reader") as bus,
        bus.subscribe(f"{BASE}/{topic}") as messages,
    ):
        async for message in messages:
            return message.payload
    raise AssertionError(f"nothing on {topic}")
