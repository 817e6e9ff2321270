"""Which of a round's metrics is its accuracy."""

from __future__ import annotations

from collections.abc import Mapping

# The server's own evaluation counts before the devices', and both before what training saw.
_ACCURACY = ("server_accuracy", "accuracy", "eval_accuracy", "train_accuracy")


def accuracy_of(metrics: Mapping[str, float]) -> float | None:
    """Return the accuracy among these metrics, None if there is none."""
    return next((metrics[name] for name in _ACCURACY if name in metrics), None)
