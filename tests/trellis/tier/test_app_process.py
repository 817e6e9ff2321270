"""A ServerApp's process: what counts as alive."""

from __future__ import annotations

import subprocess
import sys

import psutil
import pytest

from tests.central_server.parts import until
from trellis.errors import Refused
from trellis.flower.backchannel import Hello
from trellis.tier.app_process import AppProcess


async def test_a_zombie_is_dead() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        app = AppProcess.of(Hello(pid=child.pid, run_id=1))
        assert app.alive
        child.kill()  # not waited for: it stays a zombie, as finished ServerApps do
        await until(lambda: psutil.Process(child.pid).status() == psutil.STATUS_ZOMBIE)
        assert not app.alive
        app.end()
    finally:
        child.communicate()
    assert not app.alive


def test_a_live_process_is_ended() -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    AppProcess.of(Hello(pid=child.pid, run_id=1)).end()
    assert child.wait(timeout=30) != 0


def test_a_hello_from_no_process_is_refused() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    with pytest.raises(Refused, match="none such runs"):
        AppProcess.of(Hello(pid=child.pid, run_id=1))
