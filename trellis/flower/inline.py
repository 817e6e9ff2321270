"""Small messages whole, in the one request that hands them over.

Flower keeps a message's content as a tree of objects beside it: each is one request more for the sender, and
one more for the receiver. But a SuperLink stores a message as it came and hands it out as it is, so content
that stands in the message itself travels with it. A message's ID is the SHA-256 over its metadata and its
content's hashes: what has that ID once it is rebuilt is whole and unaltered, and whatever is not (a stock
SuperNode's, a large one) has objects that are pulled.

Who takes such messages says so: a query whose group is `OFFER` may be answered inline, and who answers inline
is sent inline. A stock SuperNode never does, and is sent objects.

Of the tree only the root is left, the message without its content. It is pushed later, when nobody waits for
it, because a SuperLink remembers an upload until its last object has come.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flwr.app import Message
from flwr.app.message import remove_content_from_message
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.inflatable.inflatable_object import (
    InflatableObject,
    get_all_nested_objects,
    get_object_tree,
    no_object_id_recompute,
)

OFFER = "trellis-inline"
"""The group of a query that may be answered inline."""
LARGEST_BYTES = 1024**2
"""Of one message. The SuperLink holds a copy for each device, where objects are shared between them."""
TOGETHER_BYTES = 32 * 1024**2
"""Of the messages of one phase."""
REQUEST_BYTES = 8 * 1024**2
"""Of the messages that go in one request."""


@dataclass(frozen=True)
class Post:
    """A message ready to be pushed.

    Attributes:
        proto: The message; with its content, if it goes inline.
        tree: The IDs of the objects that Flower must be told of.
        objects: Those objects.
        inline: Whether the receiver needs none of them, so that they may be pushed at any time.
    """

    proto: ProtoMessage
    tree: ObjectTree
    objects: dict[str, InflatableObject]
    inline: bool


def identify(message: Message) -> str:
    """Give `message` the ID that its content makes, and return it."""
    message_id = message.object_id
    message.metadata.__dict__["_message_id"] = message_id
    return message_id


def posted(message: Message, *, inline: bool) -> Post:
    """Return an identified message as it is pushed: inline where that is asked for and can be."""
    if inline:
        proto = message_to_proto(message)
        root = message.metadata.message_id
        # Asked of our own first: what cannot be rebuilt here cannot be there.
        size = len(proto.SerializeToString())  # type: ignore[no-untyped-call]
        if size <= LARGEST_BYTES and whole(proto) is not None:
            return Post(proto, ObjectTree(object_id=root), {root: message}, inline=True)
    bare = remove_content_from_message(message) if message.has_content() else message
    objects = get_all_nested_objects(message)
    return Post(message_to_proto(bare), get_object_tree(message), objects, inline=False)


def requests_of(sizes: Sequence[int]) -> list[list[int]]:
    """Return the messages of each request, by their position in `sizes`; none if all are too large.

    Args:
        sizes: Bytes of each message of a phase.
    """
    if sum(sizes) > TOGETHER_BYTES or max(sizes, default=0) > LARGEST_BYTES:
        return []
    requests: list[list[int]] = []
    room = 0
    for position, size in enumerate(sizes):
        if size > room or not requests:
            requests.append([])
            room = REQUEST_BYTES
        requests[-1].append(position)
        room -= size
    return requests


def whole(proto: ProtoMessage) -> Message | None:
    """Return a message that came with all its content; None if its objects must be pulled."""
    message = message_from_proto(proto)
    if not (message.has_content() or message.has_error()):
        return None
    with no_object_id_recompute():
        return message if message.object_id == proto.metadata.message_id else None


def objects_of(message: Message) -> dict[str, bytes]:
    """Return the deflated objects of a message, by ID."""
    with no_object_id_recompute():
        return {key: value.deflate() for key, value in get_all_nested_objects(message).items()}
