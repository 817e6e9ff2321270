"""What a device's reply must be before anything is averaged in."""

from __future__ import annotations

import math
from dataclasses import dataclass

from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from pydantic import ValidationError

from trellis.errors import TensorError, TrainingFailed
from trellis.flower.backchannel import Tally
from trellis.tensors import Arrays, check_like, is_packed, packed_bytes, unpack_arrays

WEIGHT = "num-examples"
TALLY = "tally"
"""The record in which a region counts its members; see `trellis.flower.backchannel.Tally`."""


MOST_SAMPLES = 2**53
"""Beyond it a float64 sum of examples is not exact."""
_LONGEST_REASON = 2000
_ROUNDING = 1e-6
"""So far past 0 or 1 a mean of shares may come."""


@dataclass(frozen=True)
class Update:
    """A checked reply: tensors by record (none for an evaluation), its numbers, configs, and its size."""

    records: dict[str, Arrays]
    metrics: dict[str, float]
    configs: dict[str, ConfigRecord]
    samples: int
    payload_bytes: int

    @property
    def tally(self) -> Tally | None:
        """What a region says of its own members; None of a device, or of a region that says nothing sound."""
        try:
            return Tally.model_validate(dict(self.configs[TALLY])) if TALLY in self.configs else None
        except ValidationError:
            return None

    @property
    def loss(self) -> float | None:
        """The loss that the device reports."""
        return self.metrics.get("train_loss", self.metrics.get("eval_loss"))


def read_update(reply: Message, sent: dict[str, Arrays], *, trained: bool) -> Update:
    """Return the update in `reply`.

    Args:
        reply: The reply of one device.
        sent: The tensors of the message that it answers, by record.
        trained: Whether that was a train message: then the same records are due, and no others are taken.

    Raises:
        TrainingFailed: The device reports an error; the message is its own, in one line.
        TensorError: Tensors or metrics do not fit, are missing, or hold NaN or infinity, or an accuracy is no
            share; each fault is named.
    """
    if reply.has_error():
        raise TrainingFailed(one_line(reply.error.reason or f"error {reply.error.code}"))
    content = reply.content
    records: dict[str, Arrays] = {}
    size = 0
    for key, record in content.array_records.items() if trained else ():
        if not is_packed(record):
            raise TensorError("update", f"holds a record {key!r} that is not packed")
        if sent and key not in sent:
            raise TensorError("update", f"holds a record {key!r} that the round's message has not")
        records[key] = unpack_arrays(record)
        size += packed_bytes(record)
        # A record that was not sent has nothing to be compared with, but must be finite all the same.
        check_like(records[key], sent.get(key, records[key]))
    missing = [key for key in sent if key not in records]
    if trained and missing:
        raise TensorError("update", f"lacks the records {missing}, came are {list(content.array_records)}")
    metrics = _metrics(content)
    samples = metrics.get(WEIGHT)
    if samples is None or not 1 <= samples <= MOST_SAMPLES or samples != int(samples):
        raise TensorError(
            "update", f"has {WEIGHT!r} {samples!r}, due is a whole number from 1 to {MOST_SAMPLES}"
        )
    return Update(records, metrics, dict(content.config_records.items()), int(samples), size)


def one_line(text: str) -> str:
    """Return a device's text fit for logs and terminals: printable, one line, not too long."""
    flat = "".join(c if c.isprintable() else " " for c in text[: 2 * _LONGEST_REASON])
    return " ".join(flat.split())[:_LONGEST_REASON]


def sent_tensors(content: RecordDict) -> dict[str, Arrays]:
    """Return the tensors of an outgoing message, by record."""
    return {key: unpack_arrays(record) for key, record in content.array_records.items() if is_packed(record)}


def _metrics(content: RecordDict) -> dict[str, float]:
    if len(content.metric_records) != 1:
        raise TensorError("update", f"holds {len(content.metric_records)} metric records, due is one")
    (record,) = content.metric_records.values()
    metrics = _scalars(record)
    broken = sorted(name for name, value in metrics.items() if not _is_finite(value))
    if broken:
        raise TensorError("update", f"has metrics that are not finite: {', '.join(broken)}")
    shares = {name: value for name, value in sorted(metrics.items()) if name.rpartition("_")[2] == "accuracy"}
    wrong = [f"{name} {v:g}" for name, v in shares.items() if not -_ROUNDING <= v <= 1 + _ROUNDING]
    if wrong:
        # One such value makes a round's mean, and what early stopping goes by, whatever its device likes.
        raise TensorError("update", f"has shares that are not between 0 and 1: {', '.join(wrong)}")
    return metrics


def _is_finite(value: float) -> bool:
    # A Python integer has no bound, and one beyond a float's raises where it is averaged.
    return abs(value) <= 2**63 if isinstance(value, int) else math.isfinite(value)


def _scalars(record: MetricRecord) -> dict[str, float]:
    return {name: value for name, value in record.items() if isinstance(value, int | float)}
