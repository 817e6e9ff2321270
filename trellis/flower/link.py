"""A warm Flower client: one long-lived process, one HTTP connection, one node key that lasts.

Stock Flower starts a process for every message; a `FlowerLink` pulls a message, hands it out, and pushes the
reply. Everything of Flower that is not public is used in this file and `device_headers`, behind the contract
tests in `tests/contract/test_link.py` and `test_device_headers.py`.

    FlowerLink.connect / pull / push
    ├── Unavailable         the server does not answer, or does not know this node any more: connect again
    ├── DiskFailed          a message, or who we are, cannot be kept: the disk is full
    ├── Refused "reply"     the SuperLink did not take a reply (the run is over, or it took an error instead)
    └── Refused "link"      the server refuses this device
"""

from __future__ import annotations

import contextvars
import errno
import json
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import cast

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Message
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PushMessagesRequest,
    RegisterNodeFleetRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, ObjectTree
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.node_pb2 import Node
from flwr.supercore.inflatable.inflatable_object import (
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_protobuf_utils import (
    make_pull_object_fn_protobuf,
    make_push_object_fn_protobuf,
)
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPullError,
    ObjectPushError,
    inflate_object_from_contents,
    pull_objects,
    push_object_contents_from_iterable,
)
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supernode.fleet_http_client import FleetHttpClient

from trellis.errors import ConfigError, DiskFailed, PayloadError, Refused, Unavailable
from trellis.files import write_atomically
from trellis.flower.device_headers import FLEET_RUN_STATUS_NOT_ALLOWED, DeviceHeaders
from trellis.flower.inbox import Inbox, Letter
from trellis.flower.inline import OFFER, identify, objects_of, posted, whole
from trellis.flower.node_key import load_node_key
from trellis.flower.parcels import is_parcel, unwrap, wrap
from trellis.loopback import is_loopback
from trellis.tls import TlsFiles, client_context

logger = logging.getLogger(__name__)

_BEAT_SHARE = 0.75
"""A heartbeat is sent after this share of its interval; Flower forgives two intervals."""
_PULL_OBJECT_S = 120.0
_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO}
_REFUSED = {httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN}


@dataclass
class _Coming:
    """A message that was handed out, and those of its objects that have come."""

    message_id: str
    run_id: int
    node_id: int
    object_ids: list[str]
    objects: dict[str, bytes] = field(default_factory=dict)


class FlowerLink:
    """A Flower client of one server. Blocking; for one thread, while heartbeats run in another.

    Args:
        address: `host:port` of the server's front.
        folder: Where the node key (0600), the node ID and unanswered messages live.
        tls: CA and client certificate; None speaks plain HTTP, on loopback only.
        heartbeat_s: Heartbeat interval told to the SuperLink, 10 to 1800 s. Liveness comes from MQTT: this
            one only has to be long enough that a pending message outlives a restart.
    """

    def __init__(
        self, address: str, *, folder: Path, tls: TlsFiles | None, heartbeat_s: float = 240.0
    ) -> None:
        host = address.rpartition(":")[0]
        if tls is None and not is_loopback(host):
            raise ConfigError(
                f"server {address!r}", "is beyond loopback, where nothing goes unencrypted: give --keys"
            )
        self.address = address
        self._folder = folder
        self._tls = tls
        self._heartbeat_s = heartbeat_s
        self._inbox = Inbox(folder / "inbox")
        self._unanswered: Iterator[Letter] = iter(())
        self._in_hand: set[str] = set()
        self._coming: _Coming | None = None
        self._parcels: set[str] = set()
        self._inline: set[str] = set()
        self._asked: dict[str, tuple[float, float]] = {}
        self._client: FleetHttpClient | None = None
        self._node: Node | None = None
        self._ended = threading.Event()
        self._beats: threading.Thread | None = None

    @property
    def node_id(self) -> int:
        """This device's Flower node ID at this server."""
        return int(self._active_node().node_id)

    @property
    def in_hand(self) -> frozenset[str]:
        """The IDs of the messages that this node has, or is fetching, and has not answered."""
        coming = set() if self._coming is None else {self._coming.message_id}
        return frozenset(self._in_hand | coming)

    def connect(self) -> int:
        """Be an active node and return its ID: the remembered one if the server still knows it.

        Never deactivates what it finds: that would destroy a pending message or an uncollected reply.
        """
        with self._answers(connecting=True):
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            node_id = self._resume() or self._activate()
        self._node = Node(node_id=node_id)
        letters = [letter for letter in self._inbox.letters() if letter.node_id == node_id]
        self._unanswered = iter(letters)
        self._in_hand = {letter.message_id for letter in letters}
        if self._coming is not None and self._coming.node_id != node_id:
            self._coming = None
        if self._beats is None:
            # In this context: what it logs is its caller's.
            beat = contextvars.copy_context().run
            self._beats = threading.Thread(
                target=beat, args=(self._beat,), name="flower-heartbeat", daemon=True
            )
            self._beats.start()
        return node_id

    def pull(self) -> Message | None:
        """Return the next message, first those that a crash left unanswered, or None if there is none."""
        for letter in self._unanswered:
            logger.info("link: message %s was left unanswered", letter.message_id[:8])
            try:
                return self._opened(letter)
            except Exception as error:  # noqa: BLE001 - it must not come first for ever
                logger.error("link: message %s cannot be read: %s", letter.message_id[:8], error)
                self.forget(letter.message_id)
        came = self._next()
        if came is None:
            return None
        # The SuperLink never hands it out again: what is confirmed must survive a crash.
        self._keep(came)
        self._in_hand.add(came.message_id)
        self._coming = None
        if not came.inline:
            with self._answers():
                self._confirm(self._connected(), self._active_node(), came.run_id, came.message_id)
        return self._opened(came)

    def _next(self) -> Letter | None:
        if self._coming is None:
            with self._answers():
                request = PullMessagesRequest(node=self._active_node())
                response = self._connected().PullMessages(request)
            if not response.messages_list:
                return None
            inline = self._begin(response.messages_list[0], response.message_object_trees[0])
            if inline is not None:
                return inline
        return self._fetch()

    def _begin(self, proto: ProtoMessage, tree: ObjectTree) -> Letter | None:
        """Return a message that came whole; another is fetched from now on."""
        message, run_id, node_id = whole(proto), proto.metadata.run_id, self.node_id
        if message is not None:
            return Letter(tree.object_id, run_id, node_id, objects_of(message), inline=True)
        # It is never handed out again: a connection that is cut must cost what was on its way, no more.
        object_ids = [branch.object_id for branch in iterate_object_tree(tree)]
        self._coming = _Coming(tree.object_id, run_id, node_id, object_ids)
        return None

    def _fetch(self) -> Letter:
        """Return the message that is coming, with all its objects; those that have come stay if it fails."""
        coming = self._coming
        if coming is None:
            raise RuntimeError("no message is coming")
        pull_object = make_pull_object_fn_protobuf(
            self._connected().PullObject, self._active_node(), coming.run_id
        )

        def kept(object_id: str) -> bytes:
            coming.objects[object_id] = pull_object(object_id)
            return coming.objects[object_id]

        missing = [object_id for object_id in coming.object_ids if object_id not in coming.objects]
        try:
            with self._answers():
                pull_objects(missing, kept, max_time=_PULL_OBJECT_S)
        except Unavailable as error:
            if not isinstance(error.__cause__, httpx.TransportError | OSError):
                self._coming = None  # the SuperLink has it no more
            raise
        objects = {object_id: coming.objects[object_id] for object_id in coming.object_ids}
        return Letter(coming.message_id, coming.run_id, coming.node_id, objects, inline=False)

    def push(self, reply: Message) -> str:
        """Upload `reply` whole and return the ID of the message that it answers.

        Raises:
            Refused: `reply`: the SuperLink did not take it; the message is forgotten.
            Unavailable: The connection broke; push the same reply again after `connect`.
        """
        answered = reply.metadata.reply_to_message_id
        if answered in self._parcels and reply.has_content():
            reply.content = wrap(reply.content)
        if answered in self._asked:
            # As old as its question: then the same answer is the same object, and an upload that was cut is
            # finished where it broke off. A second answer of another ID would be refused.
            created_at, ttl = self._asked[answered]
            reply.metadata.__dict__.update(_created_at=created_at, _ttl=ttl)
        try:
            self._upload(reply)
        except Refused:
            self.forget(answered)
            raise
        self.forget(answered)
        return answered

    def _upload(self, reply: Message) -> None:
        client, node, answered = self._connected(), self._active_node(), reply.metadata.reply_to_message_id
        with self._answers(replying=True), no_object_id_recompute():
            identify(reply)
            post = posted(reply, inline=answered in self._inline)
            response = client.PushMessages(
                PushMessagesRequest(
                    node=node,
                    messages_list=[post.proto],
                    message_object_trees=[post.tree],
                    clientapp_runtime_list=[0.0],
                )
            )
            wanted = set(response.objects_to_push)
            if not wanted:
                # HTTP 200 with nothing to push is how a SuperLink says no.
                raise self._untaken(answered)
            contents = [(key, value.deflate()) for key, value in post.objects.items() if key in wanted]
            push = make_push_object_fn_protobuf(
                client.PushObject, node, reply.metadata.run_id, response.session_id
            )
            if not post.inline:
                push_object_contents_from_iterable(contents, push)
                contents = []
        # The reply is there. What is left only lets the SuperLink forget it, and the message, in time.
        confirm = partial(self._confirm, client, node, reply.metadata.run_id, answered)
        threading.Thread(target=_settle, args=(contents, push, confirm), name="settle", daemon=True).start()

    def _confirm(self, client: FleetHttpClient, node: Node, run_id: int, message_id: str) -> None:
        client.ConfirmMessageReceived(
            ConfirmMessageReceivedRequest(node=node, run_id=run_id, message_object_id=message_id)
        )

    def _untaken(self, answered: str = "") -> Refused:
        of = f" to message {answered[:8]}" if answered else ""
        return Refused("reply", f"{self.address} did not take the reply{of}: its run is over")

    def forget(self, message_id: str) -> None:
        """Drop a message: it is answered, or never will be."""
        self._inbox.drop(message_id)
        self._in_hand.discard(message_id)
        self._parcels.discard(message_id)
        self._inline.discard(message_id)
        self._asked.pop(message_id, None)

    def close(self, *, deactivate: bool) -> None:
        """Close the connection.

        Args:
            deactivate: Sign this node off. It destroys what is pending, so only after the task has ended.
        """
        self._ended.set()
        if self._client is None:
            return
        if deactivate and self._node is not None:
            try:
                with self._answers():
                    self._client.DeactivateNode(DeactivateNodeRequest(node_id=self._node.node_id))
            except (Unavailable, Refused) as error:
                # The node lapses by itself with its heartbeat: nothing is lost.
                logger.info("link: could not sign off: %s", error)
            else:
                self._id_file.unlink(missing_ok=True)
            self._inbox.clear()
        self._client.close()
        self._client = None

    def _opened(self, letter: Letter) -> Message:
        message = _inflate(letter)
        metadata = message.metadata
        self._asked[letter.message_id] = (metadata.created_at, metadata.ttl)
        if letter.inline or metadata.group_id == OFFER:
            self._inline.add(letter.message_id)
        if message.has_content() and is_parcel(message.content):
            self._parcels.add(letter.message_id)  # who sends a parcel understands one
            try:
                message.content = unwrap(message.content)
            except PayloadError as error:
                logger.warning("link: message %s: %s", letter.message_id[:8], error)  # its handler refuses it
        return message

    def _keep(self, letter: Letter) -> None:
        try:
            self._inbox.keep(letter)
        except OSError as error:
            raise DiskFailed(
                f"{self._inbox.folder}: a message cannot be kept: {error.strerror}; free space there"
            ) from error

    @property
    def _id_file(self) -> Path:
        return self._folder / "node-id.json"

    def _connected(self) -> FleetHttpClient:
        if self._client is None:
            raise RuntimeError("FlowerLink is not connected")
        return self._client

    def _active_node(self) -> Node:
        if self._node is None:
            raise RuntimeError("FlowerLink is not connected")
        return self._node

    def _open(self, key: ec.EllipticCurvePrivateKey) -> FleetHttpClient:
        if self._client is not None:
            self._client.close()
        scheme = "http" if self._tls is None else "https"
        verify = False if self._tls is None else client_context(self._tls)
        self._client = FleetHttpClient(
            f"{scheme}://{self.address}", interceptors=[DeviceHeaders(key)], verify=verify
        )
        return self._client

    def _resume(self) -> int | None:
        """Return the remembered node ID if the server still knows it: one heartbeat, at once."""
        client = self._open(load_node_key(self._folder / "node.pem"))
        try:
            node_id = int(json.loads(self._id_file.read_text())["node_id"])
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError):
            logger.error("link: %s is damaged; registering anew", self._id_file)
            return None
        try:
            response = client.SendNodeHeartbeat(self._heartbeat(Node(node_id=node_id)))
        except httpx.HTTPStatusError as error:
            logger.info("link: node %d is not known any more (HTTP %d)", node_id, error.response.status_code)
            return None
        return node_id if response.success else None

    def _activate(self) -> int:
        self._inbox.clear()  # sent to a node that is gone
        node_id = self._try_activate(self._connected(), load_node_key(self._folder / "node.pem"))
        if node_id is None:
            # Active still, but under an ID that a crash kept us from noting: come back as a new node. Who a
            # node is the query's nonce proves, not its key.
            logger.warning(
                "link: %s holds this device's node active under an unknown ID; new key", self.address
            )
            (self._folder / "node.pem").unlink()
            key = load_node_key(self._folder / "node.pem")
            node_id = self._try_activate(self._open(key), key)
        if node_id is None:
            raise Unavailable(f"{self.address} does not activate this node")
        write_atomically(self._id_file, json.dumps({"node_id": node_id}).encode())
        return node_id

    def _try_activate(self, client: FleetHttpClient, key: ec.EllipticCurvePrivateKey) -> int | None:
        public_key = public_key_to_bytes(key.public_key())
        try:
            client.RegisterNode(RegisterNodeFleetRequest(public_key=public_key))
        except httpx.HTTPStatusError as error:
            # "Public key already in use" is our own registration of an earlier start.
            if error.response.status_code != httpx.codes.PRECONDITION_FAILED:
                raise
        request = ActivateNodeRequest(public_key=public_key, heartbeat_interval=self._heartbeat_s)
        try:
            return int(client.ActivateNode(request).node_id)
        except httpx.HTTPStatusError as error:
            if error.response.status_code != httpx.codes.PRECONDITION_FAILED:
                raise
            return None

    def _heartbeat(self, node: Node) -> SendNodeHeartbeatRequest:
        return SendNodeHeartbeatRequest(node=node, heartbeat_interval=self._heartbeat_s)

    def _beat(self) -> None:
        while not self._ended.wait(self._heartbeat_s * _BEAT_SHARE):
            client, node = self._client, self._node
            if client is None or node is None:
                continue
            try:
                client.SendNodeHeartbeat(self._heartbeat(node))
            except Exception as error:  # noqa: BLE001 - whatever it is, the next beat must come
                # Two intervals are forgiven, and a pull that fails makes its caller connect again.
                logger.warning("link: heartbeat to %s failed: %s", self.address, error)

    @contextmanager
    def _answers(self, *, connecting: bool = False, replying: bool = False) -> Iterator[None]:
        try:
            yield
        except httpx.HTTPStatusError as error:
            if replying and _is_of_ended_run(error.response):
                # A crash left the message unanswered until its run had ended: no repetition will help.
                raise self._untaken() from error
            status = error.response.status_code
            said = f"HTTP {status}: {error.response.text[:200].strip()}"
            # To a known node the same status says that the SuperLink has been started anew.
            if connecting and status in _REFUSED:
                raise Refused("link", f"{self.address} refuses this device: {said}") from error
            raise Unavailable(f"{self.address} does not serve this node: {said}") from error
        except (httpx.TransportError, OSError, ObjectPullError, ObjectPushError, ValueError) as error:
            if isinstance(error, OSError) and error.errno in _DISK:
                problem = f"{self._folder} cannot be written: {error.strerror}; free space there"
                raise DiskFailed(problem) from error
            raise Unavailable(f"{self.address} does not answer: {error or type(error).__name__}") from error


def _is_of_ended_run(response: httpx.Response) -> bool:
    try:
        said = response.json()
    except ValueError:
        return False
    return isinstance(said, dict) and said.get("code") == FLEET_RUN_STATUS_NOT_ALLOWED


def _settle(
    contents: list[tuple[str, bytes]], push: Callable[[str, bytes], None], confirm: Callable[[], None]
) -> None:
    try:
        for object_id, content in contents:
            push(object_id, content)
        confirm()
    except Exception as error:  # noqa: BLE001 - the client may be closed beneath it; a run's end settles all
        logger.info("link: what was answered stays noted until the run's end: %s", error)


def _inflate(letter: Letter) -> Message:
    message = cast(Message, inflate_object_from_contents(letter.message_id, dict(letter.objects)))
    message.metadata.__dict__["_message_id"] = letter.message_id
    return message
