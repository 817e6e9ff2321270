"""What a task came to, for machines: `summary.json`, and where its rounds stand by what is stored."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from central_server.store import MODEL, TaskRecord
from trellis.flower.backchannel import FleetDevice, RoundRecord
from trellis.identifiers import Identifier, RegionName
from trellis.payloads import ExecutionState, Reason, Round, RoundPhase, TaskState


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DevicePart(_Part):
    """One device's part in the task, as far as it has said."""

    device: Identifier
    region: RegionName
    state: ExecutionState | None
    samples: int | None
    reason: Reason | None


class RoundPart(_Part):
    """One round in short; who it was stands in metrics.jsonl."""

    round: int
    loss: float | None
    accuracy: float | None
    selected: int
    replied: int
    failed: int
    standby: int
    duration_s: float


class Summary(_Part):
    """A task at its end.

    Attributes:
        rounds: Rounds that were finished.
        posted: When it was posted, ms.
        ended: When it ended, ms.
        seconds: From its posting to its end.
        model: File of the model, if there is one.
        metrics: What the ServerApp reported last, the final evaluation.
    """

    task: Identifier
    revision: int
    state: TaskState
    reason: Reason | None
    accuracy: float | None
    loss: float | None
    rounds: int
    posted: int
    ended: int
    seconds: float
    model: str | None
    metrics: dict[str, float]
    devices: tuple[DevicePart, ...]
    history: tuple[RoundPart, ...]


def summarise(
    record: TaskRecord, history: Iterable[RoundRecord], devices: Iterable[FleetDevice], folder: Path
) -> Summary:
    """Return the summary of a task whose files lie in `folder`."""
    rounds = tuple(
        RoundPart(
            round=one.round,
            loss=one.loss,
            accuracy=one.accuracy,
            selected=one.selected,
            replied=one.replied,
            failed=one.failed,
            standby=one.standby,
            duration_s=one.duration_s,
        )
        for one in history
    )
    last = rounds[-1] if rounds else None
    model = folder / MODEL
    return Summary(
        task=record.task,
        revision=record.revision,
        state=record.state,
        reason=record.reason,
        accuracy=record.metrics.get("accuracy", last.accuracy if last else None),
        loss=record.metrics.get("loss", last.loss if last else None),
        rounds=record.round,
        posted=record.posted,
        ended=record.since,
        seconds=record.elapsed_s(record.since),
        model=str(model) if model.is_file() else None,
        metrics=record.metrics,
        devices=tuple(
            DevicePart(
                device=one.device,
                region=one.region,
                state=one.state,
                samples=one.samples,
                reason=one.reason,
            )
            for one in devices
        ),
        history=rounds,
    )


def standing_of(record: TaskRecord, last: RoundRecord | None) -> Round:
    """Return where the rounds stand: done with the last once the task has ended, gathering before.

    The same at each call, `ts` too: whoever asks again sees that nothing is new.
    """
    if not record.state.ended or last is None:
        ended = record.state.ended
        return Round(
            ts=record.since if ended else record.ts,
            round=record.round,
            rounds=record.rounds,
            phase=RoundPhase.DONE if ended else RoundPhase.GATHERING,
        )
    lost = sum((one.phase, one.outcome) == ("train", "lost") for one in last.outcomes)
    return Round(
        ts=record.since,
        round=last.round,
        rounds=record.rounds,
        phase=RoundPhase.DONE,
        selected=last.selected,
        replied=last.replied,
        failed=max(last.failed - lost, 0),  # a record counts the lost among the failed
        lost=lost,
        loss=last.loss,
        metrics=last.metrics,
        duration_s=last.duration_s,
        bytes_up=last.bytes_up,
        bytes_down=last.bytes_down,
    )
