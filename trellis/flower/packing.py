"""Makes Flower messages ready for devices: tensors packed, and told which task and round they are of."""

from __future__ import annotations

from collections.abc import Iterable

from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict

from trellis.tensors import pack

CONFIG = "config"
"""The record in which devices find the task and the round."""


def packed(messages: Iterable[Message], *, task: str, revision: int = 0) -> list[Message]:
    """Return `messages` with their tensors packed, and with what a device must know in their config.

    Flower's strategies write `server-round` alone; a device wants `task` and `round`, which are added where
    they are missing, and the descriptor's `revision`, 0 for none. Messages that share a content go on sharing
    it.
    """
    contents: dict[int, RecordDict] = {}
    ready = []
    originals = list(messages)
    for message in originals:
        if id(message.content) not in contents:
            contents[id(message.content)] = _ready(message.content, task, revision)
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


def _ready(content: RecordDict, task: str, revision: int) -> RecordDict:
    ready = RecordDict({k: pack(v) if isinstance(v, ArrayRecord) else v for k, v in content.items()})
    config = ConfigRecord({"task": task})
    if revision:
        config["revision"] = revision
    given = content.get(CONFIG)
    if isinstance(given, ConfigRecord):
        config.update(given)
    config.setdefault("round", config.get("server-round", 0))
    ready[CONFIG] = config
    return ready
