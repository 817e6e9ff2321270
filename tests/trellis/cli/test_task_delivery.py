"""Tasks carried over real HTTP to a server and gateways that keep what they were sent."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from fastapi import FastAPI, Request

from trellis import descriptor
from trellis.cli import main
from trellis.envelope import Envelope
from trellis.errors import Refused
from trellis.http.server import HttpServer, create_app
from trellis.keys.authority import create_authority, issue
from trellis.keys.identity import Identity, load_keyring
from trellis.keys.principals import BROKER
from trellis.tls import TlsFiles

FAULTS = "data set 'digits': 2 faults\n  - data.shape: is (2,)\n  - data.classes: are 3"


Started = Callable[..., "Counterpart"]


class Counterpart:
    """A service that takes every signed task of the pinned operator, and tells of one that has ended."""

    def __init__(self, keys: Path) -> None:
        self.keyring = load_keyring(keys)
        self.taken: list[descriptor.TaskDescriptor] = []
        self.gateways: list[dict[str, str]] = []
        self.state = "succeeded"
        self.states: list[str] = []
        self.asked: list[str] = []
        self.refuses = False
        self.knows_none = False
        self.url = ""
        self.app = self._routes(create_app("counterpart"))

    def _routes(self, app: FastAPI) -> FastAPI:
        async def take(request: Request) -> dict[str, Any]:
            if self.refuses:
                raise Refused("revision", "has revision 7, and 1 came")
            envelope = Envelope.parse(await request.body())
            self.keyring.verify(envelope)
            task = descriptor.parse_json(envelope.payload)
            if self.taken and task.revision < self.taken[-1].revision:
                raise Refused("revision", f"has revision {self.taken[-1].revision}, {task.revision} came")
            self.taken.append(task)
            return {"task": task.task, "revision": task.revision, "state": "posted"}

        app.post("/v1/tasks")(take)
        app.post("/v1/tasks/{task}/cancel")(take)
        app.get("/v1/gateways")(lambda: {"gateways": self.gateways})
        app.get("/v1/tasks")(lambda: {"tasks": [self._view("digits")]})
        app.get("/v1/tasks/{task}/state")(self._standing)
        app.get("/v1/tasks/{task}")(self._known)
        return app

    def _standing(self, task: str) -> dict[str, Any]:
        self.asked.append("state")
        state = self.states.pop(0) if self.states else self.state
        return {"schema": 1, "ts": 2, "task": task, "revision": 1, "state": state, "since": 1, "rounds": 10}

    def _known(self, task: str) -> dict[str, Any]:
        self.asked.append("whole")
        if self.knows_none:
            raise Refused("unknown", f"there is no task {task!r}")
        return self._view(task)

    def _view(self, task: str) -> dict[str, Any]:
        held = self.taken[-1].model_dump(mode="json", exclude_none=True) if self.taken else None
        return {
            "task": task,
            "revision": 1,
            "state": self.state,
            "round": 10,
            "rounds": 10,
            "reason": None if self.state == "succeeded" else {"code": "quorum", "message": "too few replied"},
            "metrics": {},
            "history": [
                {"round": 10, "loss": 0.1, "accuracy": 0.97, "replied": 2, "selected": 2, "failed": 0}
            ],
            "elapsed_s": 199.6,
            "devices": [
                {"region": "eu-1", "device": "cam-1", "state": "SUCCEEDED", "samples": 718},
                {"region": "eu-1", "device": "cam-2", "state": "REJECTED", "reason": {"message": FAULTS}},
            ],
            "descriptor": held,
        }


def _serve(counterpart: Counterpart, tls: TlsFiles | None, ready: Event, stop: Event) -> None:
    async def serve() -> None:
        async with HttpServer(counterpart.app, host="127.0.0.1", port=0, tls=tls) as server:
            counterpart.url = server.url
            ready.set()
            await asyncio.to_thread(stop.wait)

    asyncio.run(serve())


@pytest.fixture
def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Started]:
    """Starts counterparts, in a folder that `trellis init` has filled."""
    monkeypatch.chdir(tmp_path)
    assert main(["init"]) == 0
    stop = Event()
    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor())
        stack.callback(stop.set)

        def start(tls: TlsFiles | None = None) -> Counterpart:
            counterpart, ready = Counterpart(tmp_path / "keys"), Event()
            pool.submit(_serve, counterpart, tls, ready, stop)
            assert ready.wait(30)
            return counterpart

        yield start


def online(gateway: Counterpart) -> dict[str, str]:
    return {"region": "eu-1", "state": "online", "api": gateway.url}


Said = pytest.CaptureFixture[str]


def test_post_asks_the_server_for_the_gateways(started: Started) -> None:
    server, gateway = started(), started()
    server.gateways = [online(gateway)]
    assert main(["task", "post", "task.yaml", "--server", server.url]) == 0
    assert [task.task for task in gateway.taken] == ["digits"]
    assert server.taken == []


def test_post_goes_to_the_gateways_that_are_named(started: Started, capsys: Said) -> None:
    one, other = started(), started()
    capsys.readouterr()
    assert main(["task", "post", "task.yaml", "--gateway", one.url, "--gateway", other.url, "--json"]) == 0
    assert [len(one.taken), len(other.taken)] == [1, 1]
    delivered = json.loads(capsys.readouterr().out)["delivered"]
    assert [row["to"] for row in delivered] == [one.url, other.url]


def test_post_says_that_no_round_begins_while_the_server_lacks_the_task(
    started: Started, capsys: Said, tmp_path: Path
) -> None:
    server, gateway = started(), started()

    def said_of(url: str) -> str:
        capsys.readouterr()
        assert main(["task", "post", "task.yaml", "--gateway", gateway.url, "--server", url]) == 0
        return capsys.readouterr().err

    server.knows_none = True
    said = said_of(server.url)
    assert said.startswith("no round begins yet: there is no task 'digits'")
    assert "`trellis task run task.yaml` or `trellis server --task task.yaml` starts them" in said
    assert "no round begins yet: http://127.0.0.1:1" in said_of("http://127.0.0.1:1")
    server.knows_none = False
    post = ["task", "run", "task.yaml", "--no-watch", "--server", server.url]
    assert main([*post, "--gateway", f"eu-1={gateway.url}"]) == 0
    assert said_of(server.url) == ""
    task = tmp_path / "task.yaml"
    task.write_text(task.read_text().replace("revision: 1 ", "revision: 2 "))
    assert f"{server.url} has revision 1 of task 'digits', and not 2" in said_of(server.url)


def test_a_signed_task_is_posted_as_it_is_without_the_operators_key(started: Started, tmp_path: Path) -> None:
    gateway = started()
    assert main(["task", "sign", "task.yaml", "-o", "signed.json"]) == 0
    (tmp_path / "keys" / "operator" / "signing.key").unlink()
    assert main(["task", "post", "signed.json", "--gateway", gateway.url]) == 0
    assert len(gateway.taken) == 1


def test_a_gateway_that_refuses_does_not_keep_the_others_from_it(started: Started, capsys: Said) -> None:
    bad, good = started(), started()
    bad.refuses = True
    assert main(["task", "post", "task.yaml", "--gateway", bad.url, "--gateway", good.url]) == 1
    assert len(good.taken) == 1
    assert "has revision 7, and 1 came" in capsys.readouterr().err


def test_run_posts_to_server_and_gateways_and_tells_the_end(started: Started, capsys: Said) -> None:
    server, gateway = started(), started()
    capsys.readouterr()
    named = ["--server", server.url, "--gateway", f"eu-1={gateway.url}", "--broker", "mqtt://127.0.0.1:1"]
    assert main(["task", "run", "task.yaml", *named]) == 0
    assert [len(server.taken), len(gateway.taken)] == [1, 1]
    shown = capsys.readouterr()
    assert "task 'digits' succeeded\naccuracy: 97.00%\nmodel:    trellis model get digits" in shown.out
    assert "no live view" in shown.err


@pytest.mark.parametrize(
    "broker", ["mqtt://10.0.0.5:1883", "http://127.0.0.1:1883", "mqtts://127.0.0.1:8883"]
)
def test_run_starts_nothing_that_its_options_keep_it_from_following(
    started: Started, broker: str, tmp_path: Path
) -> None:
    server, gateway = started(), started()
    (tmp_path / "keys" / "operator" / "tls.crt").unlink()
    named = ["--server", server.url, "--gateway", f"eu-1={gateway.url}", "--broker", broker]
    assert main(["task", "run", "task.yaml", *named]) == 2
    assert server.taken == gateway.taken == []
    assert main(["task", "run", "task.yaml", *named, "--no-watch"]) == 0
    assert len(server.taken) == 1


def test_run_follows_a_task_to_its_end_though_the_broker_is_anothers(
    started: Started, capsys: Said, tmp_path: Path
) -> None:
    server, gateway = started(), started()
    create_authority(tmp_path / "other")
    issue(tmp_path / "other", BROKER)
    stranger = started(Identity.load(tmp_path / "other" / "broker").tls)
    broker = stranger.url.replace("https", "mqtts")
    named = ["--server", server.url, "--gateway", f"eu-1={gateway.url}", "--broker", broker]
    capsys.readouterr()
    assert main(["task", "run", "task.yaml", *named]) == 0
    shown = capsys.readouterr()
    assert "task 'digits' succeeded" in shown.out
    assert re.search("^no live view: .*the broker's certificate does not pass", shown.err, re.MULTILINE)


def test_run_ends_with_1_when_the_task_failed(started: Started, capsys: Said) -> None:
    server, gateway = started(), started()
    server.state = "failed"
    capsys.readouterr()
    named = ["--server", server.url, "--gateway", f"eu-1={gateway.url}", "--json"]
    assert main(["task", "run", "task.yaml", *named]) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["state"], found["model"], found["accuracy"]) == ("failed", None, 0.97)


def test_run_asks_for_the_whole_task_once_however_long_it_runs(started: Started) -> None:
    server, gateway = started(), started()
    server.states = ["posted", "running", "running"]
    named = ["--server", server.url, "--gateway", f"eu-1={gateway.url}", "--json"]
    assert main(["task", "run", "task.yaml", *named]) == 0
    assert server.asked == ["state"] * 4 + ["whole"]


def test_run_without_watching_returns_at_once(started: Started, capsys: Said) -> None:
    server, gateway = started(), started()
    server.gateways, server.state = [online(gateway)], "running"
    assert main(["task", "run", "task.yaml", "--server", server.url, "--no-watch"]) == 0
    assert "task 'digits', revision 1: taken by eu-1 at" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("pair", "problem"),
    [
        ("http://127.0.0.1:1", "must be REGION=URL"),
        ("ap-1=http://127.0.0.1:1", "is none of the task's regions: eu-1"),
    ],
)
def test_run_refuses_a_gateway_that_is_no_pair_of_the_tasks(
    started: Started, capsys: Said, pair: str, problem: str
) -> None:
    server = started()
    assert main(["task", "run", "task.yaml", "--server", server.url, "--gateway", pair]) == 2
    assert problem in capsys.readouterr().err
    assert server.taken == []


def test_cancel_signs_the_next_revision_for_server_and_gateways(started: Started) -> None:
    server, gateway = started(), started()
    server.gateways = [online(gateway)]
    assert main(["task", "run", "task.yaml", "--server", server.url, "--no-watch"]) == 0
    assert main(["task", "cancel", "digits", "--server", server.url]) == 0
    for one in (server, gateway):
        assert [(task.revision, task.desired) for task in one.taken] == [(1, "run"), (2, "canceled")]


def post_revision(gateway: Counterpart, revision: int) -> None:
    path = Path(f"revision-{revision}.yaml")
    path.write_text(Path("task.yaml").read_text().replace("revision: 1", f"revision: {revision}"))
    assert main(["task", "post", str(path), "--gateway", gateway.url]) == 0


@pytest.mark.parametrize("named", [False, True])
def test_cancel_signs_one_revision_above_the_newest_of_server_and_gateways(
    started: Started, named: bool
) -> None:
    server, ahead, other = started(), started(), started()
    task = Path("task.yaml")
    task.write_text(task.read_text().replace("[eu-1]", "[eu-1, us-1]"))
    server.gateways = [online(other), {**online(ahead), "region": "us-1"}]
    assert main(["task", "run", "task.yaml", "--server", server.url, "--no-watch"]) == 0
    post_revision(ahead, 4)
    pairs = [f"--gateway={one.url}" for one in (other, ahead)] if named else []
    assert main(["task", "cancel", "digits", "--server", server.url, *pairs]) == 0
    for one in (server, other, ahead):
        assert (one.taken[-1].revision, one.taken[-1].desired) == (5, "canceled")


def test_cancel_again_says_the_same_to_whoever_has_not_heard_of_it(started: Started) -> None:
    server, gateway = started(), started()
    server.gateways = [online(gateway)]
    assert main(["task", "run", "task.yaml", "--server", server.url, "--no-watch"]) == 0
    for _ in range(2):
        assert main(["task", "cancel", "digits", "--server", server.url]) == 0
    assert [task.revision for task in server.taken] == [1, 2, 2]
    # A gateway that went on under a higher revision has not been called off.
    post_revision(gateway, 3)
    assert main(["task", "cancel", "digits", "--server", server.url]) == 0
    assert (server.taken[-1].revision, gateway.taken[-1].revision) == (4, 4)


def test_cancel_passes_over_a_gateway_that_does_not_know_the_task(started: Started) -> None:
    server, gateway = started(), started()
    server.gateways, gateway.knows_none = [online(gateway)], True
    assert main(["task", "run", "task.yaml", "--server", server.url, "--no-watch"]) == 0
    assert main(["task", "cancel", "digits", "--server", server.url]) == 0
    assert [task.revision for task in gateway.taken] == [1, 2]


def test_cancel_without_a_server_and_a_gateway_that_knows_the_task_says_so(
    started: Started, capsys: Said
) -> None:
    gateway = started()
    gateway.knows_none = True
    away = ["--server", "http://127.0.0.1:1", "--gateway", gateway.url]
    assert main(["task", "cancel", "digits", *away]) == 1
    assert "there is no task 'digits'" in capsys.readouterr().err


def test_cancel_reaches_the_gateways_while_the_server_is_away(started: Started, capsys: Said) -> None:
    gateway = started()
    assert main(["task", "post", "task.yaml", "--gateway", gateway.url]) == 0
    away = ["--server", "http://127.0.0.1:1", "--gateway", gateway.url]
    assert main(["task", "cancel", "digits", *away]) == 0
    assert [task.desired for task in gateway.taken] == ["run", "canceled"]
    assert "not told to the server" in capsys.readouterr().err


@pytest.mark.parametrize("named", [False, True])
def test_cancel_reaches_the_gateways_that_have_a_task_the_server_does_not_know(
    started: Started, capsys: Said, named: bool
) -> None:
    server, gateway, other = started(), started(), started()
    server.gateways = [online(gateway), {**online(other), "region": "us-1"}]
    server.knows_none = other.knows_none = True
    assert main(["task", "post", "task.yaml", "--gateway", gateway.url]) == 0
    pairs = ["--gateway", gateway.url] if named else []
    assert main(["task", "cancel", "digits", "--server", server.url, *pairs]) == 0
    assert [(task.revision, task.desired) for task in gateway.taken] == [(1, "run"), (2, "canceled")]
    assert (server.taken, other.taken) == ([], [])  # the task is none of that region's
    assert "not told to the server: there is no task 'digits'" in capsys.readouterr().err


def test_cancel_of_a_task_that_nobody_knows_says_so(started: Started, capsys: Said) -> None:
    server, gateway = started(), started()
    server.knows_none = gateway.knows_none = True
    assert main(["task", "cancel", "digits", "--server", server.url]) == 1
    assert "sees no gateway that is online: name those of 'digits' with --gateway" in capsys.readouterr().err
    server.gateways = [online(gateway)]
    assert main(["task", "cancel", "digits", "--server", server.url]) == 1
    assert "error: there is no task 'digits'" in capsys.readouterr().err


def test_cancel_reaches_the_gateways_that_are_there_and_names_the_others(
    started: Started, capsys: Said
) -> None:
    server, gateway = started(), started()
    task = Path("task.yaml")
    task.write_text(task.read_text().replace("[eu-1]", "[eu-1, us-1]"))
    server.gateways = [online(gateway)]
    pairs = ["--gateway", f"eu-1={gateway.url}", "--gateway", f"us-1={started().url}"]
    assert main(["task", "run", "task.yaml", "--server", server.url, "--no-watch", *pairs]) == 0
    assert main(["task", "cancel", "digits", "--server", server.url]) == 1
    assert [task.desired for task in gateway.taken] == ["run", "canceled"]
    assert "knows no gateway that is online in us-1" in capsys.readouterr().err


def test_list_and_show_are_tables(started: Started, capsys: Said) -> None:
    server = started()
    capsys.readouterr()
    assert main(["task", "list", "--server", server.url]) == 0
    assert capsys.readouterr().out.split("\n")[:2] == [
        "TASK    REVISION  STATE      ROUND     DEVICES        ELAPSED     REASON",
        "digits  1         succeeded  10 of 10  2, 1 rejected  3 min 20 s",
    ]
    assert main(["task", "show", "digits", "--server", server.url]) == 0
    shown = capsys.readouterr().out
    assert "10     0.1000  97.00%    2 of 2   0" in shown
    assert re.search(r"^eu-1/cam-1 +SUCCEEDED +718 *$", shown, re.MULTILINE), shown
    assert "data set 'digits': 2 faults: data.shape: is (2,); data.classes: are 3" in shown
