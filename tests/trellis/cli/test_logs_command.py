"""`trellis logs` against a central server, a mosquitto and a device's own log handler."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

import trellis
from device_agent.reporting import TaskLog
from tests.central_server.parts import Launcher, Running, descriptor, signed, until
from trellis.mqtt import BrokerSettings, MqttBus
from trellis.mqtt.broker import EmbeddedBroker
from trellis.mqtt.broker_programs import find_mosquitto
from trellis.payloads import Log
from trellis.task_log import TaskLines
from trellis.topics import Kind, Topics

ROOT = Path(trellis.__file__).parent.parent
TASK = "digits-mlp"
DEADLINE_S = 60.0


class Federation(Launcher):
    """Central servers on a mosquitto."""

    def __init__(self, runs: Path, broker_url: str) -> None:
        super().__init__(runs)
        self.broker_url = broker_url

    def _bus(self, will: Any, birth: Any) -> Any:
        return MqttBus(BrokerSettings(self.broker_url, "central/server"), will=will, birth=birth)


@pytest.fixture
async def federation(tmp_path: Path) -> AsyncIterator[Federation]:
    if find_mosquitto() is None:
        if os.environ.get("CI"):
            pytest.fail("mosquitto is not installed, and CI is set")
        pytest.skip("mosquitto is not installed")
    async with EmbeddedBroker(port=0, state_dir=tmp_path / "broker", prefer="mosquitto") as broker:
        yield Federation(tmp_path / "runs", broker.url)


@contextlib.asynccontextmanager
async def device(url: str, name: str = "cam-1") -> AsyncIterator[logging.Logger]:
    """A device's log of the task in hand: yields the logger that its trainer would use."""
    heard = logging.getLogger(f"device_agent.test.{name}")
    heard.setLevel(logging.INFO)
    async with MqttBus(BrokerSettings(url, f"eu-1/devices/{name}")) as bus:
        await bus.wait_connected(30)
        log = TaskLog(bus, Topics(), region="eu-1", device=name)
        log.task = TASK
        heard.addHandler(log)
        async with asyncio.TaskGroup() as group:
            sender = group.create_task(log.run(), name="log lines")
            try:
                yield heard
            finally:
                heard.removeHandler(log)
                sender.cancel()


def fail(logger: logging.Logger) -> None:
    try:
        raise OSError("camera 0 is gone")
    except OSError:
        logger.exception("train failed")


async def start(*arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "trellis", "logs", TASK, *arguments),
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def run(*arguments: str) -> tuple[int | None, str, str]:
    process = await start(*arguments)
    async with asyncio.timeout(DEADLINE_S):
        out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


async def kept(running: Running, message: str) -> None:
    async def there() -> bool:
        answer = await running.http.get(f"/v1/tasks/{TASK}/logs")
        return message in answer.text

    await until(there)


async def say_until_kept(running: Running, say: Callable[[], None], message: str) -> None:
    """Say it until the server has it: at QoS 0, what comes before it has subscribed is lost."""
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        say()
        with contextlib.suppress(AssertionError):
            answer = await running.http.get(f"/v1/tasks/{TASK}/logs")
            assert message in answer.text
            return
        await asyncio.sleep(0.2)
    raise AssertionError(f"the server never kept {message!r}")


async def read_until(process: asyncio.subprocess.Process, text: str) -> list[str]:
    """Return the lines that the process prints, up to the one that holds `text`."""
    assert process.stdout is not None
    lines: list[str] = []
    async with asyncio.timeout(DEADLINE_S):
        while line := (await process.stdout.readline()).decode():
            lines.append(line.rstrip("\n"))
            if text in line:
                return lines
    raise AssertionError(f"{text!r} never came: {lines}")


async def test_a_devices_traceback_arrives_in_the_operators_terminal(federation: Federation) -> None:
    async with federation() as running, device(federation.broker_url) as logger:
        await running.post(descriptor())
        await say_until_kept(running, lambda: fail(logger), "camera 0 is gone")
        logger.info("round %d: trained", 4)
        await kept(running, "round 4: trained")
        code, out, err = await run(
            "--server", running.server.api_url, "--level", "error", "--device", "cam-1", "--since", "1h"
        )
        assert (code, err) == (0, "")
        first, second, *_ = lines = out.splitlines()
        assert "  eu-1/cam-1        ERROR     train failed" in first
        assert second == "    Traceback (most recent call last):"
        assert "    OSError: camera 0 is gone" in lines
        assert any('raise OSError("camera 0 is gone")' in line for line in lines)
        assert "\x1b" not in out
        assert "round 4" not in out

        code, out, _ = await run(
            "--server", running.server.api_url, "--lines", "1", "--region", "eu-1", "--json"
        )
        (line,) = [json.loads(line) for line in out.splitlines()]
        assert (code, line["device"], line["message"]) == (0, "cam-1", "round 4: trained")

        code, out, err = await run("--server", running.server.api_url, "--since", "2199-01-01T00:00Z")
        assert (code, out) == (0, "")
        code, out, err = await run("--server", running.server.api_url, "--device", "cam-9")
        assert (code, out) == (0, "")
        assert err == f"nothing was said about task {TASK!r} that was asked for\n"


@pytest.mark.parametrize("live", [True, False], ids=["broker", "polling"])
async def test_following_shows_each_line_once_and_ends_with_the_task(
    federation: Federation, live: bool
) -> None:
    federation.script = ["obeys"]
    broker = ("--broker", federation.broker_url) if live else ()
    async with federation() as running, device(federation.broker_url) as logger:
        await running.post(descriptor())
        await say_until_kept(running, lambda: logger.info("before"), "before")
        process = await start("--server", running.server.api_url, "--follow", *broker, "--device", "cam-1")
        await read_until(process, "before")
        # The past is shown, and still it may not be subscribed.
        await asyncio.sleep(2.0 if live else 0)
        logger.info("while it is followed")
        await read_until(process, "while it is followed")
        logger.info("the next")
        lines = await read_until(process, "the next")
        assert not any("while it is followed" in line for line in lines)
        await running.http.post(f"/v1/tasks/{TASK}/cancel", content=signed(descriptor().canceled()))
        async with asyncio.timeout(DEADLINE_S):
            out, err = await process.communicate()
        assert (process.returncode, err) == (0, b"")
        assert b"the next" not in out


async def test_a_gateways_lines_are_kept_and_shown_with_its_name_each_once(federation: Federation) -> None:
    federation.script = ["obeys"]
    async with federation() as running, MqttBus(BrokerSettings(federation.broker_url, "eu-1/gateway")) as bus:
        await bus.wait_connected(30)
        topic = Topics().path(Kind.GATEWAY_LOG, region="eu-1", task=TASK)
        lines = TaskLines(bus, lambda _: topic)
        sender = asyncio.create_task(lines.run(), name="log lines")

        def say(message: str) -> None:
            lines.say(TASK, Log(level="ERROR", logger="regional_gateway.region_app.app", message=message))

        await running.post(descriptor())
        await say_until_kept(running, lambda: say("before"), "before")
        process = await start(
            "--server", running.server.api_url, "--follow", "--broker", federation.broker_url
        )
        await read_until(process, "before")
        await asyncio.sleep(2.0)  # the past is shown, and still it may not be subscribed
        say("its app fails\nOSError: no such file")
        shown = await read_until(process, "its app fails")
        assert "  gateway eu-1      ERROR     its app fails" in shown[-1]
        assert await read_until(process, "") == ["    OSError: no such file"]
        await kept(running, "its app fails")
        await running.http.post(f"/v1/tasks/{TASK}/cancel", content=signed(descriptor().canceled()))
        async with asyncio.timeout(DEADLINE_S):
            out, err = await process.communicate()
        assert (process.returncode, err) == (0, b"")
        assert b"its app fails" not in out
        code, out_again, _ = await run("--server", running.server.api_url, "--region", "eu-1", "--json")
        said = [json.loads(line) for line in out_again.splitlines()]
        assert code == 0
        assert [(one["source"], one["device"]) for one in said if "OSError" in one["message"]] == [
            ("gateway", None)
        ]
        sender.cancel()
        await asyncio.wait({sender})


async def test_devices_are_heard_while_the_server_is_away(federation: Federation) -> None:
    async with device(federation.broker_url) as logger:
        process = await start("--server", "http://127.0.0.1:1", "--follow", "--broker", federation.broker_url)

        async def speak() -> None:
            while True:
                logger.info("still here")
                await asyncio.sleep(0.3)

        speaking = asyncio.create_task(speak())
        assert process.stderr is not None
        try:
            await read_until(process, "still here")
            async with asyncio.timeout(DEADLINE_S):
                told = await process.stderr.readline()
        finally:
            speaking.cancel()
            process.terminate()
            _, err = await process.communicate()
        assert (told + err).decode().count("http://127.0.0.1:1 does not answer") == 1


@pytest.mark.parametrize("options", [(), ("--follow",)])
async def test_without_server_and_broker_it_ends_with_1(options: tuple[str, ...]) -> None:
    code, out, err = await run("--server", "http://127.0.0.1:1", *options)
    assert (code, out) == (1, "")
    assert err.startswith("error: http://127.0.0.1:1 does not answer")


async def test_an_unknown_task_ends_with_1_and_a_wrong_name_with_2(federation: Federation) -> None:
    async with federation() as running:
        code, _, err = await run("--server", running.server.api_url)
        assert code == 1
        assert err == f"error: there is no task {TASK!r} at this server; there is: none\n"
        code, _, err = await run("--server", running.server.api_url, "--device", "Cam 1")
        assert code == 2
        assert err.startswith("error: device 'Cam 1': must be 1 to 63 of a-z")
        code, _, err = await run(
            "--follow", "--broker", "mqtt://127.0.0.1:1", "--server", running.server.api_url
        )
        assert code == 2
        assert "trellis broker" in err
