"""Runs the rounds of a task as a tier does: the strategy that its descriptor names, on `TrellisGrid`."""

from pathlib import Path

import numpy as np
from flwr.serverapp import Grid

from scripted.strategies import FileFleet
from trellis.descriptor import parse_json
from trellis.flower.grid import TrellisGrid
from trellis.flower.phase import Policy
from trellis.tier.round import TierRounds
from trellis.tier.strategies import build_strategy


def run_task(grid: Grid, command: dict) -> dict:
    """Run all rounds of a task on the model in `model`, an NPZ file, and write the last to `trained`."""
    task = parse_json(command["task"])
    strategy, entry = build_strategy(task)
    participants = task.participants_at("central")
    wrapped = TrellisGrid(
        grid,
        FileFleet(Path(command["view"])),
        task=task.task,
        policy=Policy(participants.deadline_s, participants.quorum),
        fold=entry.sums,
        due=entry.due,
    )
    rounds = TierRounds(
        task=task.task,
        seed=task.train.seed,
        rounds=task.train.rounds,
        participants=participants,
        strategy=strategy,
        entry=entry,
        grid=wrapped,
        report=lambda state: None,
    )
    with np.load(command["model"]) as file:
        arrays = {name: file[name] for name in file.files}
    metrics = []
    for number in range(1, task.train.rounds + 1):
        trained = rounds.train(number, arrays)
        arrays = trained.arrays
        metrics.append(trained.metrics)
    np.savez(command["trained"], **arrays)
    return {"metrics": metrics, "outcomes": [outcome.model_dump() for outcome in trained.standing.outcomes]}
