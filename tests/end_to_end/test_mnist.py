"""MNIST split between three devices: both ways of starting a task end with a model of at least 97 %."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from federation import Device, Federation
from members import ROOT
from safetensors.numpy import load_file

MNIST = ROOT.parent / "shared" / "data" / "mnist.npz"

pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(1500),
    # The file is no part of the project: where somebody has put it beside, it is used.
    pytest.mark.skipif(not MNIST.exists(), reason="there is no shared/data/mnist.npz beside the project"),
]
SOURCE = f"mnist={MNIST}"
DEVICES = tuple(Device(f"d{n}", region, data=SOURCE) for n, region in enumerate(("eu-1", "eu-1", "us-1")))
TASK: dict[str, Any] = {
    "model": {"name": "lenet5"},
    "data": {"name": "mnist", "shape": [1, 28, 28], "classes": 10, "min_samples": 100},
    "train": {"rounds": 10, "local_epochs": 1, "batch_size": 32, "learning_rate": 0.05, "seed": 42},
    "participants": {"minimum": 3, "deadline_s": 600.0},
}


@pytest.mark.parametrize("way", ["task run", "server --task and task post"])
async def test_lenet5_reaches_97_percent_on_mnist_in_ten_rounds(tmp_path: Path, way: str) -> None:
    async with Federation(tmp_path / "fleet", devices=DEVICES, server_options=("--data", SOURCE)) as fleet:
        file = fleet.task("mnist", **TASK)
        if way == "task run":
            ran = await fleet.operator("task", "run", file, timeout_s=1200)
            assert ran.code == 0, ran
        else:
            assert await fleet.server.stop() == 0
            await fleet.mqtt.field("central/state", "state", "offline")
            fleet.server.start("--task", file)
            await fleet.all_online()
            assert (await fleet.operator("task", "post", file)).code == 0
        view = await fleet.ended("mnist", within_s=1200)
        assert len(view["history"]) == 10
        model = await fleet.model("mnist")
        assert load_file(model)
        measured = await fleet.ground.command("model", "evaluate", str(model), "--data", SOURCE, "--json")
        print(way, measured.out, [round(one["duration_s"], 1) for one in view["history"]])
        assert json.loads(measured.out)["accuracy"] >= 0.97
