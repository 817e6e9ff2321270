"""Packs the tensors of Flower messages on their way out, and unpacks those of checked replies."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

from trellis.flower.updates import Update
from trellis.tensors import pack

CONFIG = "config"
"""The record in which devices find the task and the round."""


def packed(messages: Iterable[Message], *, task: str) -> list[Message]:
    """Return `messages` with their tensors packed, and with what a device must know in their config.

    Flower's strategies write `server-round` alone; a device wants `task` and `round`, which are added where
    they are missing. Messages that share a content go on sharing it.
    """
    contents: dict[int, RecordDict] = {}
    ready = []
    originals = list(messages)
    for message in originals:
        if id(message.content) not in contents:
            contents[id(message.content)] = _ready(message.content, task)
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


def _ready(content: RecordDict, task: str) -> RecordDict:
    ready = RecordDict({k: pack(v) if isinstance(v, ArrayRecord) else v for k, v in content.items()})
    config = ConfigRecord({"task": task})
    given = content.get(CONFIG)
    if isinstance(given, ConfigRecord):
        config.update(given)
    config.setdefault("round", config.get("server-round", 0))
    ready[CONFIG] = config
    return ready


def unpacked(content: RecordDict, update: Update) -> RecordDict:
    """Return `content` with the tensors of its checked update in place of the packed ones."""
    records = {
        key: ArrayRecord({name: Array(np.asarray(a)) for name, a in arrays.items()})
        for key, arrays in update.records.items()
    }
    return RecordDict({key: records.get(key, record) for key, record in content.items()})
