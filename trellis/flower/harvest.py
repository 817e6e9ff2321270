"""The checked replies of one phase, as a strategy wants them.

Either the list, by device name, or, for strategies that are functions of sums, one synthetic reply: the
weighted mean of all with their summed examples. Flower's strategies refuse a whole round whose replies differ
in their metrics, so a strategy sees the metrics that all replies have, and no others.
"""

from __future__ import annotations

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict

from trellis.errors import TensorError
from trellis.flower.folding import WeightedMean
from trellis.flower.updates import WEIGHT, Update
from trellis.tensors import Arrays

_METRICS = "metrics"


class Harvest:
    """Takes in replies as they come.

    Args:
        fold: Fold training updates into their weighted mean as they come, so that memory stays flat.
        due: Metrics that every update must have, none of them negative.
    """

    def __init__(self, *, fold: bool, due: tuple[str, ...] = ()) -> None:
        self._due = due
        self._mean = WeightedMean() if fold else None
        self._arrays_key = ""
        self._template: Message | None = None
        self._replies: list[tuple[str, Message, Update]] = []

    def check(self, update: Update) -> None:
        """Raise TensorError if `update` cannot be taken in; asked before its slot counts as filled."""
        if self._mean is not None and len(update.records) != 1:
            raise TensorError("update", f"holds {len(update.records)} records of tensors, folding needs one")
        for name in self._due:
            value = update.metrics.get(name)
            if value is None or value < 0:
                raise TensorError("update", f"has {name!r} {value!r}, due is a number from 0")

    def add(self, name: str, reply: Message, update: Update) -> None:
        """Take in the reply of one device."""
        if self._mean is None:
            reply.content = RecordDict({})  # the packed tensors; `update` has them unpacked
            self._replies.append((name, reply, update))
            return
        ((key, arrays),) = update.records.items()
        metrics = {name: value for name, value in update.metrics.items() if name != WEIGHT}
        self._mean.add(arrays, metrics, update.samples)
        if self._template is None:
            reply.content = RecordDict({})
            self._template, self._arrays_key = reply, key

    def for_strategy(self) -> list[Message]:
        """Return the replies; those of a list by device name, so that no sum depends on who was first."""
        if self._mean is not None:
            return [] if self._template is None else [self._folded(self._mean, self._template)]
        common = set.intersection(*(set(u.metrics) for _, _, u in self._replies)) if self._replies else set()
        found = []
        for _, reply, update in sorted(self._replies, key=lambda item: item[0]):
            metrics = {key: value for key, value in update.metrics.items() if key in common}
            reply.content = RecordDict(
                {
                    **{key: _record(arrays) for key, arrays in update.records.items()},
                    **update.configs,
                    _METRICS: MetricRecord({**metrics, WEIGHT: update.samples}),
                }
            )
            found.append(reply)
        return found

    def _folded(self, mean: WeightedMean, template: Message) -> Message:
        metrics = MetricRecord({**mean.metrics(), WEIGHT: mean.weight})
        template.content = RecordDict({self._arrays_key: _record(mean.arrays()), _METRICS: metrics})
        return template


def _record(arrays: Arrays) -> ArrayRecord:
    return ArrayRecord({name: Array(np.asarray(array)) for name, array in arrays.items()})
