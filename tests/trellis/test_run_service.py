"""How a service ends becomes its exit code: real processes, real signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = r"""
import asyncio, logging, sys
from trellis.errors import ConfigError, Refused, TrellisError, Unavailable
from trellis.service import configure_logging, run_service

async def wait(stop):
    print("ready", flush=True)
    await stop.wait()
    print("stopped", flush=True)

async def stubborn(stop):
    print("ready", flush=True)
    try:
        await stop.wait()
        print("stopping", flush=True)
        await asyncio.sleep(60)
    finally:
        print("cleaned up", flush=True)

async def ends(stop): pass
async def config(stop): raise ConfigError("option --port", "must be a number")
async def unavailable(stop): raise Unavailable("the broker is away")
async def foreign(stop):
    configure_logging()
    logging.getLogger("x").warning("said: %s", "\x1b[2J\x07\x9b\u202e größer\n  two")
    try:
        raise RuntimeError("\x1b]0;mine\x07")
    except RuntimeError:
        logging.getLogger("x").exception("broke")
    raise Refused("token", "no \x1b[2J token")

async def bug(stop): raise RuntimeError("a bug")

async def fail(error): raise error

async def group(stop):
    async with asyncio.TaskGroup() as outer:
        async with asyncio.TaskGroup() as inner:
            inner.create_task(fail(Refused("token", "no token")))
            inner.create_task(fail(ConfigError("keys", "are missing")))

async def mixed(stop):
    async with asyncio.TaskGroup() as group:
        group.create_task(fail(Refused("token", "no token")))
        group.create_task(fail(RuntimeError("a bug")))

sys.exit(run_service(globals()[sys.argv[1]]))
"""


def start(service: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, service],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    try:
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    return process.returncode, out, err


@pytest.mark.parametrize(
    ("service", "code", "said"),
    [
        ("ends", 0, ""),
        ("config", 2, "error: option --port: must be a number\n"),
        ("unavailable", 1, "error: the broker is away\n"),
    ],
)
def test_how_it_ends_is_its_exit_code(service: str, code: int, said: str) -> None:
    assert ended(start(service)) == (code, "", said)


def test_a_group_of_our_errors_is_said_line_by_line_with_the_gravest_code() -> None:
    code, _, err = ended(start("group"))
    assert code == 2
    assert sorted(err.splitlines()) == ["error: keys: are missing", "error: no token"]


def test_what_others_say_steers_nobodys_terminal_by_the_log() -> None:
    code, _, err = ended(start("foreign"))
    assert code == 1
    assert err.replace("\n", "").isprintable()
    said, two, *_, broke, error = err.splitlines()
    assert said.endswith(r" WARNING x: said: \x1b[2J\x07\x9b\u202e größer")
    assert (two, broke, error) == ("  two", r"RuntimeError: \x1b]0;mine\x07", r"error: no \x1b[2J token")


@pytest.mark.parametrize("service", ["bug", "mixed"])
def test_a_bug_keeps_its_traceback(service: str) -> None:
    code, _, err = ended(start(service))
    assert code == 1
    assert "Traceback" in err
    assert "RuntimeError: a bug" in err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_lets_it_stop_by_itself(number: signal.Signals, code: int) -> None:
    process = start("wait")
    assert line(process) == "ready"
    process.send_signal(number)
    assert ended(process) == (code, "stopped\n", "")


def test_a_second_interrupt_cancels_it() -> None:
    process = start("stubborn")
    assert line(process) == "ready"
    process.send_signal(signal.SIGINT)
    assert line(process) == "stopping"
    process.send_signal(signal.SIGINT)
    assert ended(process) == (130, "cleaned up\n", "")
