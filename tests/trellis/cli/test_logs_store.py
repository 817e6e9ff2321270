"""The server keeps what is said about a task, within bounds, and answers who asks for it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from central_server.logbook import (
    APP_LOG,
    LOG,
    MAX_MESSAGE_CHARS,
    BookHandler,
    Logbook,
    LogLine,
    Source,
    Wanted,
    newest,
)
from tests.central_server.parts import Launcher, Running, descriptor, until
from trellis.payloads import Log, Reason, TaskStatus

BASE = "trellis/v1"
TASK = "digits-mlp"


@pytest.fixture
def launch(tmp_path: Path) -> Launcher:
    return Launcher(tmp_path / "runs")


def device_line(message: str, *, ts: int = 1, **changes: Any) -> LogLine:
    fields = {"source": Source.DEVICE, "region": "eu-1", "device": "cam-1", "level": "INFO", "logger": "x"}
    return LogLine.model_validate({**fields, "ts": ts, "message": message, **changes})


def said(folder: Path, wanted: Wanted | None = None, limit: int = 1000) -> list[str]:
    return [line.message for line in newest(folder, wanted or Wanted(), limit)]


def test_the_newest_lines_come_in_the_order_of_their_time(tmp_path: Path) -> None:
    Logbook(tmp_path / LOG).append([device_line(f"line {n}", ts=1000 - n) for n in range(5)])
    assert said(tmp_path, limit=3) == ["line 4", "line 3", "line 2"]


def test_lines_of_one_millisecond_keep_their_order(tmp_path: Path) -> None:
    Logbook(tmp_path / LOG).append([device_line(f"line {n}") for n in range(20)])
    assert said(tmp_path, limit=3) == ["line 17", "line 18", "line 19"]


def test_more_lines_than_one_block_are_read_whole(tmp_path: Path) -> None:
    book = Logbook(tmp_path / LOG)
    messages = [f"{n} {'ä' * (n * 37 % 5000)}" for n in range(200)]
    for n, message in enumerate(messages):
        book.append([device_line(message, ts=n)])
    assert said(tmp_path) == messages


@pytest.mark.parametrize(
    ("wanted", "due"),
    [
        (Wanted(), ["own", "one", "two", "refused"]),
        (Wanted(device="cam-2"), ["two"]),
        (Wanted(region="us-1"), ["two", "refused"]),
        (Wanted(level="WARNING"), ["two", "refused"]),
        (Wanted(level="ERROR", region="us-1"), ["two"]),
        (Wanted(device="cam-3"), []),
    ],
)
def test_lines_are_chosen_by_device_region_and_level(tmp_path: Path, wanted: Wanted, due: list[str]) -> None:
    Logbook(tmp_path / LOG).append(
        [
            device_line("own", source=Source.SERVER, region=None, device=None, ts=1),
            device_line("one", ts=2),
            device_line("two", region="us-1", device="cam-2", level="CRITICAL", ts=3),
            device_line("refused", source=Source.GATEWAY, region="us-1", device=None, level="WARNING", ts=4),
        ]
    )
    assert said(tmp_path, wanted) == due


def test_a_full_file_gives_way_once_so_that_the_size_is_bounded(tmp_path: Path) -> None:
    book = Logbook(tmp_path / LOG, max_bytes=10_000)
    for n in range(1000):
        book.append([device_line(f"line {n}", ts=n)])
    sizes = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert sizes.keys() == {"log.jsonl", "log.jsonl.1"}
    assert all(size <= 10_000 for size in sizes.values())
    kept = said(tmp_path)
    # 10 000 bytes hold about 75 of these lines; both files together are read as one.
    assert kept == [f"line {n}" for n in range(1000 - len(kept), 1000)]
    assert 75 < len(kept) < 200


def test_only_what_was_stored_later_is_read_even_across_both_files(tmp_path: Path) -> None:
    book = Logbook(tmp_path / LOG, max_bytes=2_000)
    for n in range(30):
        book.append([device_line(f"line {n}", ts=n)])
    last = newest(tmp_path, Wanted(), 1)[0].stored
    book._last = last + 10  # as if time had passed
    book.append([device_line("later", ts=0)])
    assert said(tmp_path, Wanted(after=last)) == ["later"]


def test_a_line_that_a_kill_tore_costs_no_other(tmp_path: Path) -> None:
    book = Logbook(tmp_path / LOG)
    book.append([device_line("before", ts=1)])
    with (tmp_path / LOG).open("ab") as file:
        file.write(b'{"ts": 2, "sour')
    Logbook(tmp_path / LOG).append([device_line("after", ts=3)])
    assert said(tmp_path) == ["before", "after"]


def test_a_server_apps_lines_lie_beside_the_services(tmp_path: Path) -> None:
    handler = BookHandler(Logbook(tmp_path / APP_LOG))
    app_log = logging.getLogger("test.logs.app")
    app_log.addHandler(handler)
    try:
        app_log.error("round %d failed", 3, exc_info=ValueError("no such strategy"))
    finally:
        app_log.removeHandler(handler)
    Logbook(tmp_path / LOG).append([device_line("long ago", ts=1)])
    (_, own) = newest(tmp_path, Wanted(), 10)
    assert (own.source, own.level, own.region) == ("server", "ERROR", None)
    assert own.message == "round 3 failed\nValueError: no such strategy"


async def test_what_devices_and_gateways_say_is_kept_and_served(
    launch: Launcher, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with launch() as running, running.broker.bus("devices") as bus:
        await running.post(descriptor())
        trouble = Log(
            ts=2000, level="ERROR", logger="device_agent", message="train failed\nTraceback: …\nOSError: x"
        )
        fine = Log(ts=1000, level="INFO", logger="device_agent", message="round 1")
        elsewhere = Log(level="INFO", logger="device_agent", message="of another task, or region")
        verdict = Reason(code="untrusted", message="signed by a stranger")
        status = TaskStatus(ts=3000, task=TASK, revision=1, desired="run", verdict=verdict)

        async def both() -> list[dict[str, Any]]:
            # At QoS 0, what comes before the server has subscribed is lost.
            await bus.publish(f"{BASE}/us-1/devices/cam-2/tasks/{TASK}/log", trouble.to_bytes(), qos=0)
            lines = await logs(running, region="us-1")
            return lines if len(lines) >= 1 else []

        await until(both)
        for topic, payload in (
            (f"eu-1/devices/cam-1/tasks/{TASK}/log", fine),
            ("eu-1/devices/cam-1/tasks/other/log", elsewhere),
            (f"mars-1/devices/cam-1/tasks/{TASK}/log", elsewhere),
        ):
            await bus.publish(f"{BASE}/{topic}", payload.to_bytes(), qos=0)
        await bus.publish(f"{BASE}/eu-1/devices/cam-1/tasks/{TASK}/log", b"{", qos=0)
        for _ in range(3):  # the status comes again with every change, the verdict is one
            await bus.publish(f"{BASE}/us-1/tasks/{TASK}/status", status.to_bytes(), retain=True)

        async def gateways() -> list[dict[str, Any]]:
            return [line for line in await logs(running, region="us-1") if line["source"] == "gateway"]

        (refusal,) = await until(gateways)
        assert (refusal["ts"], refusal["level"]) == (3000, "WARNING")
        assert refusal["message"] == "refused (untrusted): signed by a stranger"
        (line,) = await logs(running, device="cam-1")
        assert (line["ts"], line["source"], line["region"], line["message"]) == (
            1000,
            "device",
            "eu-1",
            "round 1",
        )
        (error, *_) = await logs(running, level="ERROR")
        assert (error["device"], error["message"]) == ("cam-2", trouble.message)
    async with launch() as running:  # restarted, on a broker that still has the status

        async def server_lines() -> bool:
            return any("goes on" in line["message"] for line in await logs(running))

        await until(server_lines)
        assert len([line for line in await logs(running) if line["source"] == "gateway"]) == 1


async def test_the_servers_own_lines_about_a_task_are_kept(
    launch: Launcher, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    launch.script = ["works"]
    async with launch() as running:
        await running.post(descriptor())
        await running.reach("succeeded")

        async def ended() -> list[dict[str, Any]]:
            found = await logs(running)
            return found if any("state=succeeded" in line["message"] for line in found) else []

        lines = await until(ended)
        assert {line["source"] for line in lines} == {"server"}
        assert lines[0]["message"].startswith("revision=1 key=")
        assert lines[0]["message"].endswith(": posted")
        assert not any("device" in line or "region" in line for line in lines)


async def test_the_log_is_asked_for_piece_by_piece(
    launch: Launcher, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with launch() as running:
        await running.post(descriptor())

        async def some() -> dict[str, Any]:
            answer = (await running.http.get(f"/v1/tasks/{TASK}/logs")).json()
            return answer if answer["lines"] else {}

        first = await until(some)
        assert (first["task"], first["state"]) == (TASK, "posted")
        future = {"after": first["cursor"] + 3_600_000}
        assert (await running.http.get(f"/v1/tasks/{TASK}/logs", params=future)).json()["lines"] == []
        assert len(await logs(running, limit=1)) == 1


@pytest.mark.parametrize(
    ("path", "status", "said"),
    [
        ("nope/logs", 404, "there is no task 'nope'"),
        (f"{TASK}/logs?level=LOUD", 400, "query.level"),
        (f"{TASK}/logs?limit=0", 400, "query.limit"),
        (f"{TASK}/logs?after=-1", 400, "query.after"),
    ],
)
async def test_a_wrong_question_is_answered_with_its_fault(
    launch: Launcher, path: str, status: int, said: str
) -> None:
    async with launch() as running:
        await running.post(descriptor())
        answer = await running.http.get(f"/v1/tasks/{path}")
        assert answer.status_code == status
        assert said in answer.json()["error"]["message"]


async def test_a_line_beyond_its_bound_keeps_its_end(launch: Launcher) -> None:
    async with launch() as running, running.broker.bus("devices") as bus:
        await running.post(descriptor())
        log = Log(level="ERROR", logger="x", message="a" * 100_000 + "\nOSError: the end")

        async def there() -> list[dict[str, Any]]:
            await bus.publish(f"{BASE}/eu-1/devices/cam-1/tasks/{TASK}/log", log.to_bytes(), qos=0)
            return await logs(running, device="cam-1")

        (line, *_) = await until(there)
        assert len(line["message"]) <= MAX_MESSAGE_CHARS + 3
        assert line["message"].endswith("OSError: the end")


async def logs(running: Running, **asked: str | int) -> list[dict[str, Any]]:
    answer = await running.http.get(f"/v1/tasks/{TASK}/logs", params=asked)
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["lines"]
    return found
