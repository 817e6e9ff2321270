"""Exit codes and streams of the real command, each time as a process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import trellis
from trellis.processes import terminate_tree

ROOT = Path(trellis.__file__).parent.parent
DEADLINE_S = 60


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "trellis", *arguments]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments),
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )


def test_version_goes_to_stdout(tmp_path: Path) -> None:
    ended = run(tmp_path, "--version")
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, f"trellis {trellis.__version__}\n", "")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ("devicse",),
            "error: there is no command 'devicse': did you mean 'device'?\n  see: trellis --help\n",
        ),
        (("watch", "--jsno"), "error: no such option '--jsno'"),
        (
            ("task", "lsit"),
            "error: no such command 'lsit'. Did you mean 'list'?\n  see: trellis task --help\n",
        ),
        (("task", "validate"), "error: missing argument 'FILE'\n  see: trellis task validate --help\n"),
        (("broker", "--port", "x"), "error: invalid value for '--port': 'x' is not a valid integer"),
        (("watch", "--region", "EU"), "error: region 'EU': must be 1 to 63 of a-z"),
    ],
)
def test_a_mistyped_command_ends_with_2_and_one_message(
    tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    ended = run(tmp_path, *arguments)
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert ended.stderr.startswith(said)


def test_a_service_that_does_not_answer_ends_with_1(tmp_path: Path) -> None:
    ended = run(tmp_path, "task", "list", "--server", "http://127.0.0.1:1")
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: http://127.0.0.1:1 does not answer")
    assert ended.stderr.endswith("; start it with `trellis server`\n")


def test_a_missing_broker_ends_with_2_and_says_how_to_start_one(tmp_path: Path) -> None:
    ended = run(tmp_path, "watch", "--broker", "mqtt://127.0.0.1:1")
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: broker mqtt://127.0.0.1:1")
    assert "`trellis broker`" in ended.stderr


def test_a_reader_that_goes_away_is_no_traceback(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    ended = subprocess.run(
        command("task", "schema"),
        cwd=tmp_path,
        env=environment(),
        stdout=write,
        stderr=subprocess.PIPE,
        timeout=DEADLINE_S,
        check=False,
    )
    os.close(write)
    assert (ended.returncode, ended.stderr) == (1, b"")


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[str]:
    """A `trellis broker` of its own; yields its URL, and sees it end with 130 on Ctrl-C."""
    process = subprocess.Popen(
        command("broker", "--port", "0", "--json"),
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        text = ""
        while "}" not in text:
            line = process.stdout.readline()
            assert line, "the broker ended"
            text += line
        yield json.loads(text)["url"]
        process.send_signal(signal.SIGINT)
        assert process.wait(DEADLINE_S) == 130
    finally:
        terminate_tree(process.pid)


def test_watch_prints_one_line_of_json_per_message_until_ctrl_c(tmp_path: Path, broker: str) -> None:
    process = subprocess.Popen(
        command("watch", "--broker", broker, "--json", "--task", "digits"),
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    port = broker.rpartition(":")[2]
    publish = ["mosquitto_pub", "-p", port, "-q", "1"]
    try:
        assert process.stdout is not None
        # Retained: it arrives whenever the watcher has subscribed.
        topic = "trellis/v1/central/tasks/digits/state"
        subprocess.run(
            [*publish, "-r", "-t", topic, "-m", '{"state": "posted"}'], check=True, timeout=DEADLINE_S
        )
        other = "trellis/v1/central/tasks/other/state"
        subprocess.run([*publish, "-r", "-t", other, "-m", "{}"], check=True, timeout=DEADLINE_S)
        line = json.loads(process.stdout.readline())
        assert line == {"topic": topic, "retained": line["retained"], "payload": {"state": "posted"}}
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=DEADLINE_S)
        # A line end after the terminal's ^C.
        assert (process.returncode, rest, errors) == (130, "", "\n")
    finally:
        terminate_tree(process.pid)


def test_start_up_is_quick(tmp_path: Path) -> None:
    run(tmp_path, "--version")  # fills the file cache, and writes .pyc files
    began = time.monotonic()
    process = subprocess.Popen(
        command("--version"), cwd=tmp_path, env=environment(), stdout=subprocess.DEVNULL
    )
    _, status, used = os.wait4(process.pid, 0)
    took_s = time.monotonic() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    # Of a processor, whoever else wants it: 0.1 s. Importing flwr or torch takes more than a second.
    assert used.ru_utime + used.ru_stime < 0.9
    assert took_s < 20, "it waits for something"
