"""`trellis demo`: its summary, and that nothing of it is left, however it ends."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from members import Ground, listened, listening_ports

pytestmark = pytest.mark.timeout(400)

WITHIN_S = 240.0
END_S = 90.0
DEVICE_KEYS = {"device", "region", "state", "samples", "backend"}
ROUND_KEYS = {"round", "loss", "accuracy", "replied", "devices", "failed", "duration_s"}


@pytest.fixture
def ground(tmp_path: Path) -> Ground:
    return Ground(tmp_path / "demo")


class Demo:
    """A demo in the foreground of a terminal of its own: a session, whose process group Ctrl-C reaches."""

    def __init__(self, ground: Ground, process: subprocess.Popen[bytes], out: Path) -> None:
        self._ground, self._process, self._out = ground, process, out

    @property
    def said(self) -> str:
        return self._out.read_text()

    async def until_said(self, text: str) -> None:
        deadline = time.monotonic() + WITHIN_S
        while text not in self.said:
            assert self._process.poll() is None, f"the demo has ended without {text!r}: {self.said}"
            assert time.monotonic() < deadline, f"the demo does not say {text!r}: {self.said}"
            await asyncio.sleep(0.05)

    async def until_its_folder(self) -> None:
        deadline = time.monotonic() + WITHIN_S
        while not list(self._ground.temporary.glob("trellis-demo-*")):
            assert time.monotonic() < deadline, f"the demo makes no folder: {self.said}"
            await asyncio.sleep(0.01)

    async def code(self, within_s: float = WITHIN_S) -> int:
        return await asyncio.to_thread(self._process.wait, within_s)

    def ctrl_c(self) -> list[int]:
        """Interrupt the foreground process group; return the ports that the demo listened on."""
        ports = listening_ports(self._ground.processes())
        os.killpg(self._process.pid, signal.SIGINT)
        return ports


@asynccontextmanager
async def demo(ground: Ground, *arguments: str) -> AsyncIterator[Demo]:
    out = ground.logs / "demo.log"
    with out.open("wb") as log:
        process = ground.spawn("demo", *arguments, out=log.fileno(), err=log.fileno())
    try:
        yield Demo(ground, process, out)
    except BaseException as error:
        error.add_note(out.read_text()[-6000:])
        raise
    finally:
        await asyncio.to_thread(ground.clear)
        process.wait()


async def test_the_demo_ends_with_a_model_and_its_summary_and_leaves_nothing(ground: Ground) -> None:
    async with demo(ground, "--rounds", "3", "--json", "summary.json") as running:
        assert await running.code() == 0
    summary = json.loads((ground.folder / "summary.json").read_text())
    assert set(summary) == {"accuracy", "rounds", "seconds", "model", "devices", "history"}
    assert summary["rounds"] == 3
    assert summary["accuracy"] >= 0.85  # digits after three rounds: 0.94; chance is 0.1
    assert summary["seconds"] > 0
    assert [set(one) for one in summary["devices"]] == [DEVICE_KEYS] * 4
    assert [one["device"] for one in summary["devices"]] == ["cam-1", "cam-2", "cam-3", "cam-4"]
    assert {one["region"] for one in summary["devices"]} == {"eu-1", "us-1"}
    assert {one["state"] for one in summary["devices"]} == {"SUCCEEDED"}
    assert {one["backend"] for one in summary["devices"]} == {"torch"}
    # 1797 digits, of which 20 % are the test split that no device holds.
    assert sum(one["samples"] for one in summary["devices"]) == 1437
    assert [set(one) for one in summary["history"]] == [ROUND_KEYS] * 3
    # Two regions reply, each for two devices.
    assert [(one["round"], one["replied"], one["devices"], one["failed"]) for one in summary["history"]] == [
        (1, 2, 4, 0),
        (2, 2, 4, 0),
        (3, 2, 4, 0),
    ]
    command = ("model", "evaluate", summary["model"], "--data", "digits", "--json")
    measured = await ground.command(*command)
    assert json.loads(measured.out)["accuracy"] == summary["accuracy"]
    assert ground.residue() == []
    assert sorted(path.name for path in ground.folder.iterdir() if path.is_dir()) == [
        "home",
        "logs",
        "runs",
        "temporary",
    ]


@pytest.mark.parametrize(
    "moment",
    [
        "its folder",
        pytest.param("server is online", marks=pytest.mark.long),
        pytest.param("demo: gathering", marks=pytest.mark.long),
        pytest.param("demo: running", marks=pytest.mark.long),
        "demo: round 1 of",
    ],
)
async def test_ctrl_c_leaves_no_process_no_port_and_no_file(ground: Ground, moment: str) -> None:
    async with demo(ground, "--rounds", "500") as running:
        if moment == "its folder":
            await running.until_its_folder()
        else:
            await running.until_said(moment)
        ports = running.ctrl_c()
        assert await running.code(END_S) == 130
        assert ground.residue() == []
        assert listened(ports) == []
        assert not (ground.folder / "runs").exists()
        assert "Traceback" not in running.said


@pytest.mark.long
async def test_a_second_ctrl_c_does_not_interrupt_the_clearing_up(ground: Ground) -> None:
    async with demo(ground, "--rounds", "500", "--devices", "2") as running:
        await running.until_said("demo: round 1 of")
        ports = running.ctrl_c()
        running.ctrl_c()
        assert await running.code(END_S) == 130
        assert ground.residue() == []
        assert listened(ports) == []
