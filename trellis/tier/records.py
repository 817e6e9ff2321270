"""What is kept and what is announced of a finished round."""

from __future__ import annotations

from collections.abc import Mapping

from trellis.flower.backchannel import RoundRecord
from trellis.flower.exchange import Standing
from trellis.payloads import Round, RoundPhase
from trellis.tier.headline import headline


def record_of(
    number: int,
    metrics: Mapping[str, float],
    trained: Standing,
    evaluated: Standing | None,
    *,
    duration_s: float,
    traffic: tuple[int, int],
    standby: int = 0,
) -> RoundRecord:
    """Return the record of a round; `traffic` is its tensor bytes up and down."""
    speaking = headline(metrics)
    return RoundRecord(
        round=number,
        loss=speaking.get("loss"),
        accuracy=speaking.get("accuracy"),
        metrics=dict(metrics),
        selected=trained.slots,
        replied=trained.replied,
        failed=trained.failed + trained.lost,
        standby=standby,
        outcomes=trained.outcomes + (evaluated.outcomes if evaluated is not None else ()),
        duration_s=round(duration_s, 4),
        bytes_up=traffic[0],
        bytes_down=traffic[1],
    )


def done(record: RoundRecord, rounds: int, *, lost: int) -> Round:
    """Return what is announced of a round that is done."""
    return Round(
        round=record.round,
        rounds=rounds,
        phase=RoundPhase.DONE,
        selected=record.selected,
        replied=record.replied,
        failed=record.failed - lost,
        lost=lost,
        loss=record.loss,
        metrics=record.metrics,
        duration_s=record.duration_s,
        bytes_up=record.bytes_up,
        bytes_down=record.bytes_down,
    )
