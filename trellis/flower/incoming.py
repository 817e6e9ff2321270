"""The message that a node is being handed: it is fetched object by object, and goes on where it was cut."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import httpx
from flwr.app import MessageType
from flwr.proto.fleet_pb2 import PullMessagesRequest
from flwr.proto.message_pb2 import Message, ObjectTree
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.supercore.inflatable.inflatable_protobuf_utils import make_pull_object_fn_protobuf
from flwr.supercore.inflatable.inflatable_utils import pull_objects

from trellis.errors import Unavailable
from trellis.flower.inbox import Letter
from trellis.flower.inline import objects_of, whole
from trellis.flower.node import FlowerNode

_PULL_OBJECT_S = 120.0


@dataclass
class _Coming:
    """A message that was handed out, and those of its objects that have come."""

    message_id: str
    run_id: int
    node_id: int
    object_ids: list[str]
    asks: bool
    objects: dict[str, bytes] = field(default_factory=dict)


class Incoming:
    """What comes to a node, one message at a time."""

    def __init__(self, node: FlowerNode) -> None:
        self._node = node
        self._coming: _Coming | None = None

    @property
    def message_id(self) -> str | None:
        """The message that is coming, and has not come whole or was not taken."""
        return None if self._coming is None else self._coming.message_id

    def keep_only_of(self, node_id: int) -> None:
        """Forget what was coming to another node: nobody will get it."""
        if self._coming is not None and self._coming.node_id != node_id:
            self._coming = None

    def next(self, asked: Callable[[], None]) -> Letter | None:
        """Return the message that is coming, or else the next one; it is coming until it is `taken`.

        Args:
            asked: Called before the objects of one that asks for work are fetched, which may take long.
        """
        if self._coming is None:
            with self._node.told():
                response = self._node.client.PullMessages(PullMessagesRequest(node=self._node.proto))
            if not response.messages_list:
                return None
            inline = self._begin(response.messages_list[0], response.message_object_trees[0])
            if inline is not None:
                return inline
        if self._coming is not None and self._coming.asks:
            asked()
        return self._fetch()

    def taken(self) -> None:
        """What came is kept elsewhere."""
        self._coming = None

    def _begin(self, proto: Message, tree: ObjectTree) -> Letter | None:
        """Return a message that came whole; another is fetched from now on."""
        message, run_id, node_id = whole(proto), proto.metadata.run_id, self._node.node_id
        if message is not None:
            return Letter(tree.object_id, run_id, node_id, objects_of(message), inline=True)
        # It is never handed out again: a connection that is cut must cost what was on its way, no more.
        object_ids = [branch.object_id for branch in iterate_object_tree(tree)]
        asks = proto.metadata.message_type != MessageType.QUERY
        self._coming = _Coming(tree.object_id, run_id, node_id, object_ids, asks)
        return None

    def _fetch(self) -> Letter:
        """Return the message that is coming, with all its objects; those that have come stay if it fails."""
        coming = self._coming
        if coming is None:
            raise RuntimeError("no message is coming")
        pull_object = make_pull_object_fn_protobuf(
            self._node.client.PullObject, self._node.proto, coming.run_id
        )

        def kept(object_id: str) -> bytes:
            coming.objects[object_id] = pull_object(object_id)
            return coming.objects[object_id]

        missing = [object_id for object_id in coming.object_ids if object_id not in coming.objects]
        try:
            with self._node.told():
                pull_objects(missing, kept, max_time=_PULL_OBJECT_S)
        except Unavailable as error:
            if not isinstance(error.__cause__, httpx.TransportError | OSError):
                self._coming = None  # the SuperLink has it no more
            raise
        objects = {object_id: coming.objects[object_id] for object_id in coming.object_ids}
        return Letter(coming.message_id, coming.run_id, coming.node_id, objects, inline=False)
