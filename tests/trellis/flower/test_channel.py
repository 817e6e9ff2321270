"""A Flower app's end of the backchannel, against a small service that speaks it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Annotated, Any

import httpx
import pytest
from fastapi import FastAPI, Header, Response

from trellis.errors import ConfigError, Refused, Unavailable
from trellis.flower import channel as channel_module
from trellis.flower.backchannel import (
    TOKEN_VARIABLE,
    URL_VARIABLE,
    Brief,
    FleetDevice,
    FleetView,
    Hello,
    RoundRecord,
    StateReport,
)
from trellis.flower.channel import ServiceChannel
from trellis.http.server import HttpServer, create_app
from trellis.payloads import Round, RoundPhase, TaskState

BRIEF = Brief(descriptor="{}", folder="/runs/mnist", data="digits")


@dataclass
class Service:
    """What the service knows and has heard."""

    url: str = ""
    view: FleetView = field(default_factory=lambda: FleetView(version=1))
    heard: list[Any] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def environment(self) -> dict[str, str]:
        return {URL_VARIABLE: self.url, TOKEN_VARIABLE: "secret"}

    def show(self, view: FleetView) -> None:
        self.view = view
        self.changed.set()


def app_of(service: Service) -> FastAPI:
    app = create_app("service")

    def check(token: str) -> None:
        if token != "Bearer secret":
            raise Refused("token", "the backchannel needs the bearer token")

    @app.post("/app/mnist/hello")
    async def hello(hello: Hello, authorization: Annotated[str, Header()] = "") -> Brief:
        check(authorization)
        service.heard.append(hello)
        return BRIEF

    @app.get("/app/mnist/fleet")
    async def fleet(after: int, wait_s: float) -> Response:
        service.changed.clear()
        if service.view.version <= after:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(service.changed.wait(), wait_s)
        return Response(service.view.model_dump_json(), media_type="application/json")

    @app.post("/app/mnist/round")
    async def announce(standing: Round) -> dict[str, str]:
        service.heard.append(standing)
        return {}

    @app.post("/app/mnist/record")
    async def record(record: RoundRecord) -> dict[str, str]:
        service.heard.append(record)
        return {}

    @app.post("/app/mnist/state")
    async def state(report: StateReport) -> dict[str, str]:
        service.heard.append(report)
        return {}

    return app


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    service = Service()
    async with HttpServer(app_of(service), host="127.0.0.1", port=0, tls=None) as server:
        service.url = server.url
        yield service
        service.changed.set()


async def test_everything_said_arrives_as_it_was_said(service: Service) -> None:
    standing = Round(round=1, rounds=3, phase=RoundPhase.TRAIN, selected=2, metrics={"loss": 0.5})
    record = RoundRecord(round=1, loss=0.5, replied=2)
    report = StateReport(state=TaskState.RUNNING)

    def talk() -> Brief:
        with ServiceChannel("mnist", service.environment) as channel:
            brief = channel.hello(2**63)
            channel.announce(standing)
            channel.record(record)
            channel.report(report)
            channel.report(report)  # said once
            return brief

    assert await asyncio.to_thread(talk) == BRIEF
    assert service.heard == [Hello(pid=os.getpid(), run_id=2**63), standing, record, report]


async def test_what_could_not_be_said_is_raised_before_anything_else_is(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ServiceChannel("mnist", service.environment) as channel:
        await asyncio.to_thread(channel.hello, 1)

        def cut(*_: object, **__: object) -> httpx.Response:
            raise httpx.ReadError("cut")

        with monkeypatch.context() as patched:
            patched.setattr(channel._http, "post", cut)
            channel.record(RoundRecord(round=1))
            with pytest.raises(Unavailable, match="does not answer 'record'"):
                await asyncio.to_thread(channel.flush)
        await asyncio.to_thread(channel.report, StateReport(state=TaskState.RUNNING))


async def test_waiting_ends_as_soon_as_the_fleet_changes(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel_module, "_POLL_S", 600.0)
    device = FleetDevice(region="eu-1", device="cam-7", online=True)
    with ServiceChannel("mnist", service.environment) as channel:
        await asyncio.to_thread(channel.hello, 1)
        assert (await asyncio.to_thread(channel.wait, 0, 60.0)).version == 1
        waiting = asyncio.create_task(asyncio.to_thread(channel.wait, 1, 60.0))
        service.show(FleetView(version=2, devices=(device,)))
        view = await asyncio.wait_for(waiting, 15)  # its client gives a poll up after 20 s
        assert (view.version, view.devices) == (2, (device,))


async def test_waiting_ends_at_its_deadline_with_the_present_view(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel_module, "_POLL_S", 600.0)
    with ServiceChannel("mnist", service.environment) as channel:
        await asyncio.to_thread(channel.hello, 1)
        await asyncio.to_thread(channel.wait, 0, 60.0)
        started = time.monotonic()
        assert (await asyncio.to_thread(channel.wait, 5, 0.2)).version == 1
        assert 0.15 < time.monotonic() - started < 15


async def test_between_two_views_it_rests_for_each_device_and_not_beyond_its_end(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel_module, "_REST_S", 600.0)
    with ServiceChannel("mnist", service.environment) as channel:
        await asyncio.to_thread(channel.hello, 1)
        assert (await asyncio.to_thread(channel.wait, 0, 60.0)).version == 1
        device = FleetDevice(region="eu-1", device="cam-1", online=True)
        service.show(FleetView(version=2, devices=(device,)))
        assert (await asyncio.to_thread(channel.wait, 1, 60.0)).version == 2  # of an empty fleet: no rest
        service.show(FleetView(version=3, devices=(device,)))
        assert (await asyncio.to_thread(channel.wait, 2, 0.5)).version == 2
    await asyncio.to_thread(channel._thread.join, 60.0)
    assert not channel._thread.is_alive()


async def test_a_service_that_is_gone_ends_the_waiting(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel_module, "_GONE_AFTER_S", 0.5)
    monkeypatch.setattr(channel_module, "_POLL_S", 0.3)
    other = Service()
    async with HttpServer(app_of(other), host="127.0.0.1", port=0, tls=None) as server:
        other.url = server.url
        with ServiceChannel("mnist", other.environment) as channel:
            await asyncio.to_thread(channel.hello, 1)
            await asyncio.to_thread(channel.wait, 0, 60.0)
            other.changed.set()
            await server.__aexit__(None, None, None)
            with pytest.raises(Unavailable, match="the service that started this app is gone"):
                await asyncio.to_thread(channel.wait, 99, 30.0)
            with pytest.raises(Unavailable, match="does not answer 'state'"):
                await asyncio.to_thread(channel.report, StateReport(state=TaskState.FAILED))


async def test_a_wrong_token_is_not_let_in(service: Service) -> None:
    environment = service.environment | {TOKEN_VARIABLE: "guess"}
    with (
        ServiceChannel("mnist", environment) as channel,
        pytest.raises(Unavailable, match=r"does not answer 'hello': .*401"),
    ):
        await asyncio.to_thread(channel.hello, 1)
    assert service.heard == []


@pytest.mark.parametrize("missing", [URL_VARIABLE, TOKEN_VARIABLE])
def test_an_app_that_no_service_started_says_so(missing: str) -> None:
    environment = {URL_VARIABLE: "http://127.0.0.1:1", TOKEN_VARIABLE: "x"}
    del environment[missing]
    with pytest.raises(ConfigError, match=f"needs {missing}, which its service sets: run `trellis server`"):
        ServiceChannel("mnist", environment)
