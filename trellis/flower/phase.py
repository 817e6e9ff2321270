"""One phase of a round on the wire: messages sent, fleet watched, replies checked and handed on.

The rules of when it ends are `trellis.flower.exchange`'s; this is what talks to Flower and to the fleet.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from flwr.app import Message

from trellis.errors import Canceled, PayloadError, TensorError, TrainingFailed
from trellis.flower.backchannel import FleetView
from trellis.flower.channel import Fleet
from trellis.flower.checkin import CheckIn
from trellis.flower.delivery import Delivery
from trellis.flower.exchange import Exchange, Flight, Slot, Standing
from trellis.flower.harvest import Harvest
from trellis.flower.mail import Mail
from trellis.flower.parcels import unwrap, wrapped
from trellis.flower.pulling import Puller
from trellis.flower.updates import one_line, read_update, sent_tensors
from trellis.payloads import Round, RoundPhase, now_ms
from trellis.tensors import Arrays, packed_bytes

logger = logging.getLogger(__name__)

_LOOK_S = 1.0
_COUNTS_EVERY_S = 0.25
_TAKE_S = 0.1
_LAST_PULLS_S = 5.0
"""At the deadline a reply that is all there comes within this time; one that is not is late."""
_PHASES = {"train": RoundPhase.TRAIN, "evaluate": RoundPhase.EVALUATE}


@dataclass(frozen=True)
class Policy:
    """When a phase ends.

    Attributes:
        deadline_s: Seconds from the sending of a phase's messages.
        quorum: Share of the slots whose replies are enough once nobody else is here, or at the deadline.
    """

    deadline_s: float = 120.0
    quorum: float = 0.8


class Announcer:
    """What is said of the rounds, and a number that grows with every message: devices pull when it does."""

    def __init__(self, fleet: Fleet, rounds: int) -> None:
        self._fleet = fleet
        # From the clock, in milliseconds: an app that follows another must not begin with just the number
        # that the other ended with, or nobody would pull what it has sent.
        self._messages = now_ms()
        self.rounds = rounds
        self.standing = Round(round=0, rounds=rounds, phase=RoundPhase.GATHERING)
        self.bytes_up = 0
        self.bytes_down = 0

    def begin_round(self) -> None:
        """Count bytes from zero again."""
        self.bytes_up = self.bytes_down = 0

    def say(self, standing: Round) -> None:
        """Announce where the round stands."""
        self.standing = standing.model_copy(update={"announced": self._messages, "ts": now_ms()})
        self._fleet.announce(self.standing)

    def sent(self, messages: int) -> None:
        """Announce that so many messages more are waiting to be pulled."""
        self._messages += messages
        self.say(self.standing)

    def count(self, messages: int) -> None:
        """Count messages whose announcement is about to follow."""
        self._messages += messages


class Phase:
    """The run of one phase.

    Args:
        mail: Sends messages, and takes in replies.
        fleet: Who is here.
        checkin: Who is who.
        announcer: Tells devices to pull.
        policy: Deadline and quorum.
        outgoing: Packed messages, all of one type, one for each slot.
        fold: Fold training updates into their weighted mean.
        due: Metrics that every training update must have.
        stale: Messages of closed phases whose replies may still come; shared by all phases of a task.
        on_waiting: Told when the phase waits for devices that are gone, and None once it does so no more.
    """

    def __init__(
        self,
        *,
        mail: Mail,
        fleet: Fleet,
        checkin: CheckIn,
        announcer: Announcer,
        policy: Policy,
        outgoing: list[Message],
        fold: bool,
        due: tuple[str, ...],
        stale: set[str],
        on_waiting: Callable[[str | None], None],
    ) -> None:
        self._mail, self._fleet, self._checkin, self._announcer = mail, fleet, checkin, announcer
        self._started = time.monotonic()
        self._deadline = self._started + policy.deadline_s
        self._type = outgoing[0].metadata.message_type
        self._exchange = Exchange(self._type, policy.quorum, waits_for_lost=self._type == "train")
        self._sent: dict[int, dict[str, Arrays]] = {}
        self._harvest = Harvest(fold=fold and self._type == "train", due=due if self._type == "train" else ())
        self._puller = Puller(mail)
        self._stale = stale
        self._counts_said = 0.0
        self._on_waiting = on_waiting
        self._lost = 0
        self._waits_for = 0
        self._closed: Standing | None = None
        self._round = _round_of(outgoing[0])
        view = fleet.wait(-1, 0.0)
        names = [checkin.name_of(message.metadata.dst_node_id) for message in outgoing]
        self._send([(Slot(m.content, self._type), m) for m in outgoing], names, view, new=True)

    def run(self) -> tuple[list[Message], Standing]:
        """Wait until the phase closes; return the replies for the strategy, and what became of everybody."""
        version = -1
        while True:
            remaining = self._deadline - time.monotonic()
            # While a reply is on its way it is what is waited for; a look at the fleet costs nothing.
            look_s = 0.0 if self._puller.busy else _LOOK_S
            view = self._fleet.wait(version, max(0.0, min(remaining, look_s)))
            version = view.version
            if view.canceled or view.over:
                raise Canceled(view.why_over)
            self._checkin.step(view)
            self._puller.start(self._uploaded(view))
            self._take_in(_TAKE_S)
            if remaining <= 0:
                return self._close(view)
            self._exchange.give_up(view)
            if self._replace(view) or self._send_again(view):
                continue
            if self._exchange.is_complete(view):
                return self._close(view)
            self._lost = self._exchange.lost(view)
            self._say_deserted(view)
            self._say()

    def _say_deserted(self, view: FleetView) -> None:
        waits_for = self._lost if self._exchange.is_deserted(view) else 0
        if waits_for == self._waits_for:
            return
        self._waits_for = waits_for
        if not waits_for:
            self._on_waiting(None)
            return
        until = datetime.now(UTC) + timedelta(seconds=self._deadline - time.monotonic())
        gone = f"{waits_for} of {len(self._exchange.slots)} devices are gone, and nobody stands by"
        self._on_waiting(f"round {self._round}: {gone}; it waits for them until {until:%H:%M:%S} UTC")

    def _uploaded(self, view: FleetView) -> list[str]:
        # What came too late for its phase is pulled as well, and dropped: the SuperLink keeps it until then.
        if view.blind:
            return list(self._exchange.awaited())  # no upload is announced: whatever is there is taken
        announced = {device.message_id for device in view.devices}
        return self._exchange.uploaded(view) + [key for key in self._stale if key in announced]

    def _close(self, view: FleetView) -> tuple[list[Message], Standing]:
        if time.monotonic() >= self._deadline:
            # An announcement may have been lost: ask once for whatever is still awaited.
            self._puller.start(self._exchange.awaited())
            until = time.monotonic() + _LAST_PULLS_S
            while self._puller.busy and self._exchange.awaited() and time.monotonic() < until:
                self._take_in(_TAKE_S)
        self._stale.update(self._exchange.unanswered())
        self._closed = self._exchange.close(view)
        self._say(now=True)
        return self._harvest.for_strategy(), self._closed

    def _send(
        self, pairs: list[tuple[Slot, Message]], names: list[str], view: FleetView, *, new: bool = False
    ) -> None:
        """Send a message for each slot to the device of that name, by now perhaps another node as well."""
        connects = {device.node_id: device.connects for device in view.devices}
        message_ids = list(self._mail.push_messages(wrapped(message for _, message in pairs)))
        for (slot, message), name, message_id in zip(pairs, names, message_ids, strict=True):
            node_id = message.metadata.dst_node_id
            size = sum(packed_bytes(record) for record in slot.content.array_records.values())
            delivery = Delivery(connects.get(node_id, 0), size)
            flight = Flight(name, node_id, delivery=delivery)
            if new:
                self._exchange.add(slot)
            if not message_id:
                flight.outcome, flight.reason = "failed", "the SuperLink did not take the message"
            self._exchange.sent(slot, message_id or f"unsent-{node_id}", flight)
            if id(slot.content) not in self._sent:
                self._sent[id(slot.content)] = sent_tensors(slot.content)
            self._announcer.bytes_down += size
        self._announcer.count(len(message_ids))
        self._say(now=True)

    def _take_in(self, timeout_s: float) -> None:
        awaited = self._exchange.awaited()
        for pulled in self._puller.take(timeout_s):
            if pulled.reply is not None or pulled.problem is not None:
                self._stale.discard(pulled.message_id)
            slot = awaited.get(pulled.message_id)
            if slot is None:
                continue
            if pulled.problem is not None:
                self._exchange.fail(pulled.message_id, one_line(pulled.problem))
            elif pulled.reply is not None:
                self._take(pulled.message_id, slot, pulled.reply)

    def _take(self, message_id: str, slot: Slot, reply: Message) -> None:
        name = slot.flights[message_id].name
        try:
            if reply.has_content():
                reply.content = unwrap(reply.content)
            trained = self._type == "train"
            update = read_update(reply, self._sent[id(slot.content)], trained=trained)
            self._harvest.check(update)
        except (PayloadError, TensorError, TrainingFailed) as error:
            logger.warning("dropped the reply of device=%s: %s", name, error)
            self._exchange.fail(message_id, str(error))
            return
        if self._exchange.fill(message_id, update):
            self._announcer.bytes_up += update.payload_bytes
            self._harvest.add(name, reply, update)

    def _replace(self, view: FleetView) -> bool:
        """Give the messages of slots that nobody works on to members that stand by."""
        if self._type != "train":
            return False
        vacant = self._exchange.vacant(view)
        if not vacant:
            return False
        busy = self._exchange.busy_nodes()
        free = [member for member in self._checkin.members(view) if member.node_id not in busy]
        pairs = [
            (slot, Message(slot.content, member.node_id, slot.message_type))
            for slot, member in zip(vacant, free, strict=False)
        ]
        if pairs:
            names = [member.name for member in free[: len(pairs)]]
            logger.info("replaced by standby: %s", ", ".join(names))
            self._send(pairs, names, view)
        return bool(pairs)

    def _send_again(self, view: FleetView) -> bool:
        """Send what was lost on its way once more, to the same device."""
        lost = self._exchange.undelivered(view)
        if lost:
            names = [flight.name for _, flight in lost]
            logger.info("round %d: never reached %s, and is sent again", self._round, ", ".join(names))
            again = [(slot, Message(slot.content, f.node_id, slot.message_type)) for slot, f in lost]
            self._send(again, names, view)
        return bool(lost)

    def _say(self, *, now: bool = False) -> None:
        """Announce the counts: at once, or when they have changed, a few times a second."""
        time_s = time.monotonic()
        said = self._announcer.standing
        changed = (self._exchange.replied, self._lost) != (said.replied, said.lost)
        if not now and (not changed or time_s - self._counts_said < _COUNTS_EVERY_S):
            return
        self._counts_said = time_s
        self._announcer.say(
            Round(
                round=self._round,
                rounds=self._announcer.rounds,
                phase=_PHASES.get(self._type, RoundPhase.GATHERING),
                selected=len(self._exchange.slots),
                replied=self._exchange.replied,
                failed=self._closed.failed if self._closed else 0,
                lost=self._closed.lost if self._closed else self._lost,
                duration_s=time_s - self._started,
                bytes_up=self._announcer.bytes_up,
                bytes_down=self._announcer.bytes_down,
            )
        )


def _round_of(message: Message) -> int:
    for record in message.content.config_records.values():
        value = record.get("server-round", 0)
        if isinstance(value, int):
            return value
    return 0
