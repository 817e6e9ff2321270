"""Devices behind a bad link: slow, narrow, and cut again and again."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from federation import Device, Federation
from slow_link import Line

pytestmark = pytest.mark.timeout(300)


async def test_a_task_finishes_over_a_link_that_is_slow_and_cuts(tmp_path: Path) -> None:
    devices = (Device("d1"), Device("d2"))
    async with Federation(tmp_path / "fleet", devices=devices, line=Line()) as fleet:
        began = time.monotonic()
        await fleet.submit("bumpy", train={"rounds": 3})
        view = await fleet.ended("bumpy")
        took_s = time.monotonic() - began
        cuts = {name: link.cuts for name, link in fleet.links.items()}
        print(f"{took_s:.1f} s, cuts {cuts}, rounds of {[one['duration_s'] for one in view['history']]} s")
        assert min(cuts.values()) >= 3, "a link that holds proves nothing"
        # A message or an upload that is lost for good costs a round its whole deadline.
        assert max(one["duration_s"] for one in view["history"]) < 80
        assert [one["replied"] for one in view["history"]] == [2, 2, 2]
