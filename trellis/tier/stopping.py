"""When a task ends before its last round: at a target, or after `patience` evaluations without progress."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from trellis.descriptor import Stop


@dataclass(frozen=True)
class Progress:
    """What early stopping remembers of the evaluations so far.

    Attributes:
        best: The best value of the metric.
        waited: Evaluations since then.
        reason: Why the task is to end now, or None.
    """

    best: float | None = None
    waited: int = 0
    reason: str | None = None


def advance(
    progress: Progress, stop: Stop | None, metrics: Mapping[str, float], round_number: int
) -> Progress:
    """Return the progress after one evaluation; without `stop`, or without its metric, nothing changes."""
    value = None if stop is None else metrics.get(stop.metric)
    if stop is None or value is None:
        return progress
    better = progress.best is None or _is_better(stop, value, progress.best)
    now = Progress(best=value) if better else Progress(best=progress.best, waited=progress.waited + 1)
    if stop.target is not None and not _is_better(stop, stop.target, value):
        return replace(
            now, reason=f"{stop.metric} {value:.4f} reached {stop.target:g} in round {round_number}"
        )
    if stop.patience is not None and now.waited >= stop.patience:
        best = f"{stop.metric} has not been better than {now.best:.4f}"
        return replace(now, reason=f"{best} for {now.waited} evaluations, in round {round_number}")
    return now


def _is_better(stop: Stop, one: float, other: float) -> bool:
    return one > other if stop.metric == "accuracy" else one < other
