"""The service's side of the backchannel, spoken to by a real process and by wrong callers."""

from __future__ import annotations

import asyncio
import os
import statistics
import time

import httpx
import pytest

from tests.central_server.parts import Launcher, descriptor, signed, until
from trellis.flower.backchannel import Brief, FleetView
from trellis.payloads import Execution, ExecutionState, Round, RoundPhase


async def test_an_app_process_takes_a_task_from_hello_to_its_model(launch: Launcher) -> None:
    launch.script = ["works"]
    async with launch() as running:
        await running.post(descriptor())
        view = await running.reach("succeeded")
        assert (view["round"], view["metrics"]["accuracy"]) == (3, 0.97)
        assert [record["round"] for record in view["history"]] == [1, 2, 3]
        assert view["history"][0]["outcomes"][0]["device"] == "cam-1"
        announced = Round.model_validate((await running.http.get("/v1/tasks/digits-mlp/round")).json())
        assert (announced.round, announced.announced) == (3, 3)
        model = await running.http.get("/v1/tasks/digits-mlp/model")
        assert (model.status_code, model.content) == (200, b"a model")
        folder = running.runs / "digits-mlp"
        assert len((folder / "metrics.jsonl").read_bytes().splitlines()) == 3
        assert (folder / "summary.json").is_file()
        assert (folder / "report.html").is_file()


async def test_without_the_token_nothing_is_answered(launch: Launcher) -> None:
    async with launch() as running:
        await running.post(descriptor())
        url = running.superlinks[0].environment["TRELLIS_BACKCHANNEL"]
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Bearer ü".encode()}):
            async with httpx.AsyncClient(base_url=url, headers=headers, trust_env=False) as stranger:
                for call in (stranger.get("/app/digits-mlp/fleet"), stranger.post("/app/digits-mlp/state")):
                    answer = await call
                    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "token")
        assert (await running.view())["state"] == "posted"


async def test_hello_is_answered_with_the_brief(launch: Launcher) -> None:
    async with launch(data={"digits": "digits"}) as running:
        await running.post(descriptor())
        [run_id] = await until(lambda: list(running.superlinks[0].runs))
        async with running.backchannel as app:
            answer = await app.post("/app/digits-mlp/hello", json={"pid": os.getpid(), "run_id": run_id})
            brief = Brief.model_validate_json(answer.content)
            assert '"digits-mlp"' in brief.descriptor
            assert (brief.folder, brief.data) == (str(running.runs / "digits-mlp"), "digits")
            other = await app.post("/app/digits-mlp/hello", json={"pid": os.getpid(), "run_id": 1})
            assert (other.status_code, other.json()["error"]["code"]) == (403, "run")
            unknown = await app.post("/app/nope/hello", json={"pid": 1, "run_id": 1})
            assert unknown.status_code == 404
        # It said hello with our own pid: the server must not end us with the run.
        running.server._tasks.find("digits-mlp").runs.expect(None)


async def test_the_fleet_poll_answers_at_the_next_change(launch: Launcher) -> None:
    async with launch() as running, running.broker.bus("device") as bus, running.backchannel as app:
        await running.post(descriptor())
        first = FleetView.model_validate_json((await app.get("/app/digits-mlp/fleet?after=0")).content)
        assert (first.version, first.devices) == (1, ())
        poll = asyncio.create_task(app.get("/app/digits-mlp/fleet?after=1&wait_s=30", timeout=40))
        await asyncio.sleep(0.05)
        assert not poll.done()
        execution = Execution(state=ExecutionState.IN_PROGRESS, version=1)
        topic = "trellis/v1/eu-1/devices/cam-1/tasks/digits-mlp/execution"
        await bus.publish(topic, execution.to_bytes(), retain=True)
        async with asyncio.timeout(20):
            view = FleetView.model_validate_json((await poll).content)
        assert [device.name for device in view.devices] == ["eu-1/cam-1"]
        # Called off: the poll says so at once.
        poll = asyncio.create_task(app.get(f"/app/digits-mlp/fleet?after={view.version}&wait_s=30"))
        body = signed(descriptor().canceled())
        assert (await running.http.post("/v1/tasks/digits-mlp/cancel", content=body)).status_code == 200
        async with asyncio.timeout(20):
            assert FleetView.model_validate_json((await poll).content).canceled


async def test_a_round_is_on_mqtt_before_its_call_is_answered(launch: Launcher) -> None:
    async with launch() as running, running.broker.bus("device") as bus, running.backchannel as app:
        await running.post(descriptor())
        async with bus.subscribe("trellis/v1/central/tasks/+/round") as messages:
            took_s: list[float] = []
            for number in range(1, 21):
                began = time.monotonic()
                round = Round(round=number, rounds=20, phase=RoundPhase.TRAIN, announced=number)
                answer = await app.post(
                    "/app/digits-mlp/round", json=round.model_dump(mode="json", by_alias=True)
                )
                assert answer.status_code == 200
                message = await anext(messages)
                assert Round.parse(message.payload).round == number
                took_s.append(time.monotonic() - began)
            # A round of training is about 0.3 s, so an announcement must be far below.
            assert statistics.median(took_s) < 0.1


async def test_an_app_that_fails_because_its_superlink_dies_does_not_fail_its_task(
    launch: Launcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trellis.tier.backchannel_api._DOUBT_S", 3.0)
    async with launch() as running, running.backchannel as app:
        await running.post(descriptor())
        report = {"state": "failed", "reason": {"code": "internal", "message": "ConnectError"}}
        said = asyncio.create_task(app.post("/app/digits-mlp/state", json=report))
        began = time.monotonic()
        # It is a word of the app's: the only one, since none of its processes ever says one.
        await until(lambda: running.server._tasks.find("digits-mlp").runs._heard > began)
        running.superlinks[0].died.set()
        assert (await said).status_code == 403
        assert (await running.view())["state"] == "posted"


async def test_the_headline_is_the_servers_own_evaluation_where_it_has_one(launch: Launcher) -> None:
    async with launch() as running, running.backchannel as app:
        await running.post(descriptor())
        record = {"round": 1, "loss": 0.4, "accuracy": 0.8, "metrics": {"train_loss": 0.4}}
        await app.post("/app/digits-mlp/record", json=record)
        assert (await running.view())["metrics"] == {"train_loss": 0.4, "loss": 0.4, "accuracy": 0.8}
        final = {"eval_accuracy": 0.85, "server_accuracy": 0.9, "server_loss": 0.3}
        await app.post("/app/digits-mlp/state", json={"state": "succeeded", "metrics": final})
        metrics = (await running.view())["metrics"]
        assert (metrics["accuracy"], metrics["loss"], metrics["eval_accuracy"]) == (0.9, 0.3, 0.85)


async def test_reports_after_the_end_change_nothing(launch: Launcher) -> None:
    async with launch() as running, running.backchannel as app:
        await running.post(descriptor())
        for state in ("failed", "running"):
            report = {"state": state, "reason": {"code": "quorum", "message": "too few"}}
            await app.post("/app/digits-mlp/state", json=report)
        view = await running.view()
        assert (view["state"], view["reason"]["code"]) == ("failed", "quorum")
