"""Runs an unmodified Flower strategy through `TrellisGrid`; the fleet is what a test writes to a file."""

import time
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord
from flwr.serverapp import Grid
from flwr.serverapp import strategy as flower

from trellis.flower.backchannel import FleetView
from trellis.flower.grid import TrellisGrid
from trellis.flower.phase import Policy
from trellis.payloads import Round


class FileFleet:
    """A fleet whose view is a file; announcements go nowhere, because the test's devices poll."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def wait(self, after: int, timeout_s: float) -> FleetView:
        deadline = time.monotonic() + timeout_s
        while True:
            view = FleetView.model_validate_json(self._path.read_bytes())
            if view.version > after or time.monotonic() >= deadline:
                return view
            time.sleep(0.01)

    def announce(self, standing: Round) -> None:
        pass


class NotingGrid(TrellisGrid):
    """A grid that keeps what became of everybody in the training phases."""

    outcomes = ()

    def send_and_receive(self, messages, *, timeout=None):
        messages = list(messages)
        replies = super().send_and_receive(messages, timeout=timeout)
        if messages and messages[0].metadata.message_type == "train":
            self.outcomes = self.last.outcomes
        return replies


def members(grid: Grid, command: dict) -> dict:
    """Return who has checked in `settle_s` after `devices` have."""
    wrapped = TrellisGrid(grid, FileFleet(Path(command["view"])), task="t")
    while len(wrapped.wait_members(-1, 0.05)[1]) < command["devices"]:
        pass
    end = time.monotonic() + command["settle_s"]
    while time.monotonic() < end:
        _, found = wrapped.wait_members(-1, 0.05)
    return {"members": [member.name for member in found]}


def run_strategy(grid: Grid, command: dict) -> dict:
    """Run `rounds` rounds of Flower's own `Strategy.start` and return the model's sum and the losses."""
    wrapped = NotingGrid(
        grid,
        FileFleet(Path(command["view"])),
        task="t",
        policy=Policy(deadline_s=command["deadline_s"], quorum=command["quorum"]),
        fold=command["fold"],
    )
    while len(members := wrapped.wait_members(-1, 0.05)[1]) < command["devices"]:
        pass
    shown = command.get("shown")
    if shown is not None:
        wrapped.show_only([member for member in members if member.name in shown])
    strategy = getattr(flower, command["name"])(
        **command["params"],
        min_train_nodes=1,
        min_evaluate_nodes=1,
        min_available_nodes=1,
    )
    start = ArrayRecord({"w": Array(np.zeros(4, np.float32)), "b": Array(np.zeros((2, 2), np.float32))})
    result = strategy.start(grid=wrapped, initial_arrays=start, num_rounds=command["rounds"])
    return {
        "arrays": {name: array.numpy().astype(float).tolist() for name, array in result.arrays.items()},
        "metrics": {str(r): dict(m) for r, m in result.train_metrics_clientapp.items()},
        "train_outcomes": [o.model_dump() for o in wrapped.outcomes],
    }
