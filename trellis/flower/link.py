"""A warm Flower client: one long-lived process, one HTTP connection, one node key that lasts.

Stock Flower starts a process for every message; a `FlowerLink` pulls a message, hands it out, and pushes the
reply. It stands on Flower's Fleet client, which is not public: `node` (who we are there), `incoming` and
`outgoing` (what comes and goes), `device_headers` and `link_faults` use it, behind the contract tests in
`tests/contract/test_link.py` and `test_device_headers.py`. What it raises is drawn in `link_faults`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

from flwr.app import Message
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

from trellis.errors import ConfigError, DiskFailed, PayloadError, Refused
from trellis.flower.inbox import Inbox, Letter
from trellis.flower.incoming import Incoming
from trellis.flower.inline import OFFER
from trellis.flower.node import FlowerNode
from trellis.flower.outgoing import confirm, upload
from trellis.flower.parcels import is_parcel, unwrap, wrap
from trellis.loopback import is_loopback
from trellis.tls import TlsFiles

logger = logging.getLogger(__name__)


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
        self._node = FlowerNode(address, folder, tls, heartbeat_s)
        self._incoming = Incoming(self._node)
        self._inbox = Inbox(folder / "inbox")
        self._unanswered: Iterator[Letter] = iter(())
        self._in_hand: set[str] = set()
        self._parcels: set[str] = set()
        self._inline: set[str] = set()
        self._asked: dict[str, tuple[float, float]] = {}

    @property
    def node_id(self) -> int:
        """This device's Flower node ID at this server."""
        return self._node.node_id

    @property
    def in_hand(self) -> frozenset[str]:
        """The IDs of the messages that this node has, or is fetching, and has not answered."""
        coming = self._incoming.message_id
        return frozenset(self._in_hand if coming is None else self._in_hand | {coming})

    def connect(self) -> int:
        """Be an active node and return its ID: the remembered one if the server still knows it.

        Never deactivates what it finds: that would destroy a pending message or an uncollected reply.
        """
        with self._node.told(connecting=True):
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            node_id = self._node.resume() or self._node.activate()
            letters = self._inbox.keep_only_of(node_id)
        self._unanswered = iter(letters)
        self._in_hand = {letter.message_id for letter in letters}
        self._incoming.keep_only_of(node_id)
        self._node.live_as(node_id)
        return node_id

    def pull(self, asked: Callable[[], None] = lambda: None) -> Message | None:
        """Return the next message, first those that a crash left unanswered, or None if there is none.

        Args:
            asked: Called before a message that asks for work is fetched, unless it has come whole.
        """
        for letter in self._unanswered:
            logger.info("link: message %s was left unanswered", letter.message_id[:8])
            try:
                return self._opened(letter)
            except Exception as error:  # noqa: BLE001 - it must not come first for ever
                logger.error("link: message %s cannot be read: %s", letter.message_id[:8], error)
                self.forget(letter.message_id)
        came = self._incoming.next(asked)
        if came is None:
            return None
        # The SuperLink never hands it out again: what is confirmed must survive a crash.
        self._keep(came)
        self._in_hand.add(came.message_id)
        self._incoming.taken()
        if not came.inline:
            confirm(self._node, came.run_id, came.message_id)
        return self._opened(came)

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
            upload(self._node, reply, inline=answered in self._inline)
        except Refused:
            self.forget(answered)
            raise
        self.forget(answered)
        return answered

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
        if self._node.close(deactivate=deactivate):
            self._inbox.clear()

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


def _inflate(letter: Letter) -> Message:
    message = cast(Message, inflate_object_from_contents(letter.message_id, dict(letter.objects)))
    message.metadata.__dict__["_message_id"] = letter.message_id
    return message
