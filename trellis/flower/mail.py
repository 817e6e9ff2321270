"""How a ServerApp sends messages and takes in replies: Flower's grid, with small messages inline.

`trellis.flower.inline` says what that is. Everything of `HttpGrid` that is not public is used in this file
alone, behind the contract tests in `tests/contract/test_grid.py`.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Iterable
from typing import Protocol, cast

import httpx
from flwr.app import Message, RecordDict
from flwr.common.serde import recorddict_to_proto
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, ObjectTree
from flwr.proto.runtime_pb2 import PullAppMessagesRequest, PushAppMessagesRequest
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree, no_object_id_recompute
from flwr.supercore.inflatable.inflatable_protobuf_utils import (
    make_pull_object_fn_protobuf,
    make_push_object_fn_protobuf,
)
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPushError,
    inflate_object_from_contents,
    pull_objects,
)
from flwr.superlink.grid.http_grid import HttpGrid

from trellis.flower.inline import identify, posted, requests_of, whole

logger = logging.getLogger(__name__)


class Mail(Protocol):
    """What the phases of a round use of a grid."""

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages and return their IDs, an empty one for what was not taken."""
        ...

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies that are there."""
        ...


def mail_of(grid: Grid) -> Mail:
    """Return the mail of `grid`; one that does not speak HTTP to a SuperLink is its own."""
    return InlineMail(grid) if isinstance(grid, HttpGrid) else grid


class InlineMail:
    """The mail of one `HttpGrid`. Nodes that answer inline are sent inline."""

    def __init__(self, grid: HttpGrid) -> None:
        self._grid = grid
        self._takers: set[int] = set()
        self._unconfirmed: deque[str] = deque()

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Send messages and return their IDs, an empty one for what the SuperLink did not take."""
        ready = list(messages)
        batches = self._inline(ready)
        inline = {id(message) for batch in batches for message in batch}
        others = [message for message in ready if id(message) not in inline]
        found: dict[int, str] = {}
        for batch in batches:
            found |= dict(zip(map(id, batch), self._push_inline(batch), strict=True))
        if others:
            found |= dict(zip(map(id, others), self._grid.push_messages(others), strict=True))
        return [found[id(message)] for message in ready]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Return the replies that are there.

        Raises:
            ObjectPullError: One has objects that did not come.
        """
        response = self._grid._runtime_client.PullMessages(PullAppMessagesRequest(message_ids=message_ids))
        found = []
        for proto, tree in zip(response.messages_list, response.message_object_trees, strict=True):
            message = whole(proto)
            if message is None:
                message = self._pulled(proto.metadata.message_id, tree)
            else:
                # Its sender may not be done with it: whoever confirms too soon makes it a stranger's.
                self._unconfirmed.append(proto.metadata.message_id)
                if message.has_content():
                    self._takers.add(message.metadata.src_node_id)
            found.append(message)
        return found

    def _inline(self, messages: list[Message]) -> list[list[Message]]:
        """Return those that go inline, by request: to whom it can, unless all together are too large."""
        found = [message for message in messages if message.metadata.dst_node_id in self._takers]
        sizes = {id(m.content): _bytes(m.content) for m in found if m.has_content()}
        requests = requests_of([sizes[id(message.content)] for message in found])
        return [[found[position] for position in request] for request in requests]

    def _push_inline(self, messages: list[Message]) -> list[str]:
        with no_object_id_recompute():
            for message in messages:
                identify(message)
            posts = [posted(message, inline=True) for message in messages]
        response = self._grid._runtime_client.PushMessages(
            PushAppMessagesRequest(
                messages_list=[post.proto for post in posts],
                message_object_trees=[post.tree for post in posts],
            )
        )
        wanted = set(response.objects_to_push)
        now = {k: v.deflate() for p in posts if not p.inline for k, v in p.objects.items() if k in wanted}
        later = {k: v.deflate() for p in posts if p.inline for k, v in p.objects.items() if k in wanted}
        self._push_objects(now, response.session_id)
        unconfirmed = [self._unconfirmed.popleft() for _ in range(len(self._unconfirmed))]
        # A daemon: nobody waits for it, not even the end of the run, which forgets all that is its own.
        threading.Thread(
            target=self._settle, args=(later, response.session_id, unconfirmed), name="settle", daemon=True
        ).start()
        return list(response.message_ids)

    def _push_objects(self, objects: dict[str, bytes], session_id: str) -> None:
        client, grid = self._grid._runtime_client, self._grid
        push = make_push_object_fn_protobuf(client.PushObject, grid.node, grid.run.run_id, session_id)
        for object_id, content in objects.items():
            push(object_id, content)

    def _settle(self, objects: dict[str, bytes], session_id: str, received: list[str]) -> None:
        """Let the SuperLink forget: uploads that are complete, and replies that have come."""
        try:
            for message_id in received:
                self._confirm(message_id)
            self._push_objects(objects, session_id)
        except (httpx.HTTPError, ObjectPushError, OSError) as error:
            logger.info("mail: what was sent and received stays noted until the run's end: %s", error)

    def _confirm(self, message_id: str) -> None:
        self._grid._runtime_client.ConfirmMessageReceived(
            ConfirmMessageReceivedRequest(
                node=self._grid.node, run_id=self._grid.run.run_id, message_object_id=message_id
            )
        )

    def _pulled(self, message_id: str, tree: ObjectTree) -> Message:
        client, grid = self._grid._runtime_client, self._grid
        objects = pull_objects(
            [branch.object_id for branch in iterate_object_tree(tree)],
            make_pull_object_fn_protobuf(client.PullObject, grid.node, grid.run.run_id),
        )
        self._confirm(message_id)
        message = cast(Message, inflate_object_from_contents(message_id, objects))
        message.metadata.__dict__["_message_id"] = message_id
        return message


def _bytes(content: RecordDict) -> int:
    return len(recorddict_to_proto(content).SerializeToString())  # type: ignore[no-untyped-call]
