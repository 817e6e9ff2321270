"""What a device's reply must be before anything is averaged in."""

from __future__ import annotations

import math
from dataclasses import dataclass

from flwr.app import Message, MessageType, MetricRecord, RecordDict

from trellis.errors import TensorError, TrainingFailed
from trellis.tensors import Arrays, check_like, is_packed, packed_bytes, unpack_arrays

WEIGHT = "num-examples"


@dataclass(frozen=True)
class Update:
    """A checked reply: tensors by record (empty for an evaluation), one record's metrics, and its size."""

    records: dict[str, Arrays]
    metrics_key: str
    metrics: dict[str, float]
    samples: int
    payload_bytes: int

    @property
    def loss(self) -> float | None:
        """The loss that the device reports."""
        return self.metrics.get("train_loss", self.metrics.get("eval_loss"))


def read_update(reply: Message, sent: dict[str, Arrays]) -> Update:
    """Return the update in `reply`.

    Args:
        reply: The reply of one device.
        sent: The tensors of the message that it answers, by record.

    Raises:
        TrainingFailed: The device reports an error; the message is its own.
        TensorError: Tensors or metrics do not fit, are missing, or hold NaN or infinity; each fault is named.
    """
    if reply.has_error():
        raise TrainingFailed(reply.error.reason or f"error {reply.error.code}")
    content = reply.content
    records: dict[str, Arrays] = {}
    size = 0
    for key, record in content.array_records.items():
        if not is_packed(record):
            raise TensorError("update", f"holds a record {key!r} that is not packed")
        records[key] = unpack_arrays(record)
        size += packed_bytes(record)
        # A record of the client's own has nothing to be compared with, but must be finite all the same.
        check_like(records[key], sent.get(key, records[key]))
    missing = [key for key in sent if key not in records]
    if missing and reply.metadata.message_type.partition(".")[0] == MessageType.TRAIN:
        raise TensorError("update", f"lacks the records {missing}, came are {list(records)}")
    metrics_key, metrics = _metrics(content)
    samples = metrics.get(WEIGHT)
    if samples is None or samples < 1 or samples != int(samples):
        raise TensorError("update", f"has {WEIGHT!r} {samples!r}, due is a whole number of at least 1")
    return Update(records, metrics_key, metrics, int(samples), size)


def sent_tensors(content: RecordDict) -> dict[str, Arrays]:
    """Return the tensors of an outgoing message, by record."""
    return {key: unpack_arrays(record) for key, record in content.array_records.items() if is_packed(record)}


def _metrics(content: RecordDict) -> tuple[str, dict[str, float]]:
    if len(content.metric_records) != 1:
        raise TensorError("update", f"holds {len(content.metric_records)} metric records, due is one")
    ((key, record),) = content.metric_records.items()
    metrics = _scalars(record)
    broken = sorted(name for name, value in metrics.items() if not math.isfinite(value))
    if broken:
        raise TensorError("update", f"has metrics that are not finite: {', '.join(broken)}")
    return key, metrics


def _scalars(record: MetricRecord) -> dict[str, float]:
    return {name: value for name, value in record.items() if isinstance(value, int | float)}
