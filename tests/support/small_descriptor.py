"""A task that says no more than it must, and when it was issued."""

from __future__ import annotations

from typing import Any

SMALL: dict[str, Any] = {
    "task": "t",
    "regions": ["eu-1"],
    "server": {"address": "127.0.0.1:8000"},
    "model": {"name": "lenet5"},
    "data": {"name": "digits", "shape": [1, 8, 8], "classes": 10},
    "train": {"rounds": 3, "learning_rate": 0.1},
    "issued_at": "2026-05-01T12:00:00Z",
}
