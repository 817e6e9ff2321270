"""Which of a task's metrics speak for it."""

from __future__ import annotations

from collections.abc import Mapping


def headline(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return `loss` and `accuracy`: the server's own where it has evaluated, else the devices'."""
    return {
        name: metrics[f"{where}_{name}"]
        for where in ("train", "eval", "server")  # the later replaces the earlier
        for name in ("loss", "accuracy")
        if f"{where}_{name}" in metrics
    }
