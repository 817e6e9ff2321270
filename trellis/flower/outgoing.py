"""A node's replies: uploaded whole, and what is left to be said of them, beside the next work."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from functools import partial

from flwr.app import Message
from flwr.proto.fleet_pb2 import PushMessagesRequest
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.inflatable.inflatable_object import no_object_id_recompute
from flwr.supercore.inflatable.inflatable_protobuf_utils import make_push_object_fn_protobuf
from flwr.supercore.inflatable.inflatable_utils import push_object_contents_from_iterable
from flwr.supernode.fleet_http_client import FleetHttpClient

from trellis.flower.inline import identify, posted
from trellis.flower.link_faults import untaken
from trellis.flower.node import FlowerNode

logger = logging.getLogger(__name__)


def upload(node: FlowerNode, reply: Message, *, inline: bool) -> None:
    """Have `reply` at the SuperLink on return.

    Args:
        node: Who answers.
        reply: The answer.
        inline: Whether it may go whole, in one request.

    Raises:
        Refused: `reply`: the SuperLink did not take it.
        Unavailable: The connection broke.
    """
    client, proto, answered = node.client, node.proto, reply.metadata.reply_to_message_id
    with node.told(replying=True), no_object_id_recompute():
        identify(reply)
        post = posted(reply, inline=inline)
        response = client.PushMessages(
            PushMessagesRequest(
                node=proto,
                messages_list=[post.proto],
                message_object_trees=[post.tree],
                clientapp_runtime_list=[0.0],
            )
        )
        wanted = set(response.objects_to_push)
        if not wanted:
            # HTTP 200 with nothing to push is how a SuperLink says no.
            raise untaken(node.address, answered)
        contents = [(key, value.deflate()) for key, value in post.objects.items() if key in wanted]
        push = make_push_object_fn_protobuf(
            client.PushObject, proto, reply.metadata.run_id, response.session_id
        )
        if not post.inline:
            push_object_contents_from_iterable(contents, push)
            contents = []
    # The reply is there. What is left only lets the SuperLink forget it, and the message, in time.
    settled = partial(_confirm, client, proto, reply.metadata.run_id, answered)
    threading.Thread(target=_settle, args=(contents, push, settled), name="settle", daemon=True).start()


def confirm(node: FlowerNode, run_id: int, message_id: str) -> None:
    """Tell the SuperLink that a message has come."""
    with node.told():
        _confirm(node.client, node.proto, run_id, message_id)


def _confirm(client: FleetHttpClient, node: Node, run_id: int, message_id: str) -> None:
    client.ConfirmMessageReceived(
        ConfirmMessageReceivedRequest(node=node, run_id=run_id, message_object_id=message_id)
    )


def _settle(
    contents: list[tuple[str, bytes]], push: Callable[[str, bytes], None], confirm: Callable[[], None]
) -> None:
    try:
        for object_id, content in contents:
            push(object_id, content)
        confirm()
    except Exception as error:  # noqa: BLE001 - the client may be closed beneath it; a run's end settles all
        logger.info("link: what was answered stays noted until the run's end: %s", error)
