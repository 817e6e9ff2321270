"""Between a region's link to the tier above and its gateway: tells what the link does, and wakes it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Collection

from flwr.app import Message

from trellis.errors import Unavailable
from trellis.flower.backchannel import FleetView, Uplink
from trellis.flower.channel import ServiceChannel
from trellis.flower.link_loop import Halt
from trellis.payloads import Reason

logger = logging.getLogger(__name__)

_LOOK_S = 5.0


class Herald:
    """Tells the gateway how the link fares, and wakes or ends the link on what the gateway hears.

    Attributes:
        trouble: What ended the link before its task had ended, if anything did.
    """

    def __init__(self, channel: ServiceChannel, halt: Halt) -> None:
        self._channel, self._halt = channel, halt
        self.trouble: Exception | None = None

    def start(self) -> None:
        """Begin to follow the gateway, in a thread that ends with the task."""
        threading.Thread(target=self._follow, name="herald", daemon=True).start()

    def connecting(self, reason: str) -> None:
        """The link is lost, and tries again."""
        self._say(Uplink(event="connecting", reason=Reason(code="unavailable", message=reason[:2000])))

    def connected(self, node_id: int, in_hand: Collection[str]) -> None:
        """The link is a node of the tier above, and has these messages to answer."""
        self._say(Uplink(event="connected", node_id=node_id, in_hand=tuple(sorted(in_hand))))

    def asked(self) -> None:
        """A message of the tier above is on its way."""
        self._say(Uplink(event="asked"))

    def replying(self, message_id: str) -> None:
        """A reply is about to be uploaded."""
        self._say(Uplink(event="replying", message_id=message_id))

    def replied(self, message: Message, reply: Message) -> None:
        """A reply is with the tier above, which may pull it."""
        reason = None
        if reply.has_error():
            text = reply.error.reason or f"error {reply.error.code}"
            reason = Reason(code="training", message=text[:2000])
        kind, message_id = message.metadata.message_type, message.metadata.message_id
        self._say(
            Uplink.model_validate(
                {"event": "replied", "message_id": message_id, "kind": kind, "reason": reason}
            )
        )

    def give_up(self, error: Exception) -> None:
        """End the link: whoever comes back starts another run, which takes up what is in its inbox."""
        logger.error("the run ends, to be taken up by another: %s", error)
        self.trouble = self.trouble or error
        self._halt.call(task_ended=False)

    def _say(self, news: Uplink) -> None:
        try:
            self._channel.uplink(news)
        except Unavailable as error:
            self.give_up(error)
            raise

    def _follow(self) -> None:
        view = FleetView(version=0)
        while not self._halt.called:
            try:
                newer = self._channel.wait(view.version, _LOOK_S)
            except Unavailable as error:
                self.give_up(error)
                return
            if newer.over or newer.canceled:
                logger.info("%s", newer.why_over)
                self._halt.call(task_ended=True)
            elif newer.announced != view.announced:
                self._halt.wake()
            view = newer
