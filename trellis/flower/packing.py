"""Packs the tensors of Flower messages on their way out, and unpacks those of checked replies."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from flwr.app import Array, ArrayRecord, Message, RecordDict

from trellis.flower.updates import Update
from trellis.tensors import pack


def packed(messages: Iterable[Message]) -> list[Message]:
    """Return `messages` with their tensors packed; messages that share a content go on sharing it."""
    contents: dict[int, RecordDict] = {}
    ready = []
    originals = list(messages)
    for message in originals:
        if id(message.content) not in contents:
            contents[id(message.content)] = RecordDict(
                {k: pack(v) if isinstance(v, ArrayRecord) else v for k, v in message.content.items()}
            )
        metadata = message.metadata
        ready.append(
            Message(
                contents[id(message.content)],
                metadata.dst_node_id,
                metadata.message_type,
                ttl=metadata.ttl,
                group_id=metadata.group_id,
            )
        )
    return ready


def unpacked(content: RecordDict, update: Update) -> RecordDict:
    records = {
        key: ArrayRecord({name: Array(np.asarray(a)) for name, a in arrays.items()})
        for key, arrays in update.records.items()
    }
    return RecordDict({key: records.get(key, record) for key, record in content.items()})
