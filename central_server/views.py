"""What the HTTP API shows of a task."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ConfigDict

from central_server.task import ServerTask
from trellis.flower.backchannel import FleetDevice, RoundRecord
from trellis.payloads import Reason, TaskState, now_ms


class TaskView(BaseModel):
    """A task as `GET /v1/tasks/{id}` answers it; in the list `history` holds the last round alone.

    `elapsed_s` counts from its posting to its end, or to now.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: str
    revision: int
    state: TaskState
    since: int
    elapsed_s: float
    round: int
    rounds: int
    reason: Reason | None
    metrics: dict[str, float]
    devices: tuple[FleetDevice, ...]
    history: tuple[RoundRecord, ...]
    descriptor: dict[str, Any]  # as JSON: it was validated when it came


def task_view(task: ServerTask, history: Iterable[RoundRecord]) -> TaskView:
    """Return the view of `task` with these of its rounds."""
    record = task.record
    return TaskView(
        task=task.name,
        revision=record.revision,
        state=record.state,
        since=record.since,
        elapsed_s=record.elapsed_s(now_ms()),
        round=record.round,
        rounds=record.rounds,
        reason=record.reason,
        metrics=record.metrics,
        devices=task.fleet.view.devices,
        history=tuple(history),
        descriptor=task.descriptor.model_dump(mode="json", exclude_none=True),
    )
