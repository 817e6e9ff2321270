"""A device under Flower's own SuperNode beside one with the warm link, in one task."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from federation import Device, Federation
from members import Member, command_line
from safetensors.numpy import load_file

pytestmark = pytest.mark.timeout(300)

DEVICES = (
    Device("stock", options=("--link", "supernode", "--trust-server-code")),
    Device("warm"),
)


def programs(member: Member) -> set[str]:
    """Return the names of the Python programs that run below a member."""
    lines = [command_line(process).split() for process in member.descendants()]
    return {Path(words[1]).name for words in lines if len(words) > 1}


@pytest.mark.long
async def test_a_stock_supernode_and_a_warm_link_train_one_model(tmp_path: Path) -> None:
    async with Federation(tmp_path / "fleet", devices=DEVICES, gated=True) as fleet:
        assert fleet.devices["stock"].descendants() == [], "no task, no Flower client"
        held = fleet.hold_update("warm", "mixed", 2)
        await fleet.submit("mixed", evaluate={"on": ["server", "devices"], "every": 2})
        await fleet.rounds_done("mixed", 1, within_s=150)
        assert programs(fleet.devices["stock"]) >= {"flower-supernode", "flower-superexec"}
        assert fleet.devices["warm"].descendants() == []
        held.release()
        view = await fleet.ended("mixed")
        said = [
            {(one["device"], one["phase"], one["outcome"]) for one in record["outcomes"]}
            for record in view["history"]
        ]
        trained = {("stock", "train", "replied"), ("warm", "train", "replied")}
        assert said == [
            trained,
            trained | {("stock", "evaluate", "replied"), ("warm", "evaluate", "replied")},
        ]
        for device in ("stock", "warm"):
            await fleet.mqtt.field(fleet.execution(device, "mixed"), "state", "SUCCEEDED")
        model = load_file(await fleet.model("mixed"))
        assert sum(array.size for array in model.values()) == 64 * 10 + 10  # softmax on 8 x 8
        assert view["metrics"]["server_accuracy"] > 0.6  # ten classes: chance is 0.1
        # The agent trained, as with its own link: its journal and its log know of it.
        assert fleet.devices["stock"].said().count("trained on") == 2
        deadline = time.monotonic() + 60
        while left := fleet.devices["stock"].descendants():
            assert time.monotonic() < deadline, [command_line(process) for process in left]
            await asyncio.sleep(0.1)
