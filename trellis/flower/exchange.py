"""One phase of a round: messages out, replies in, until all have replied or a rule closes it.

A *slot* is one place in the round. Its message goes to one device; when that device is lost or fails, the
slot's message goes to one that stands by, and whoever answers first fills the slot: no slot counts twice.

The phase ends
- when every slot is filled, or has failed and nobody stands by;
- when every open slot is lost, nobody stands by, and the quorum is reached: nobody is left to wait for
  (an evaluation does not wait for the lost at all);
- at the deadline. Below the quorum the caller decides (`Standing.quorum_reached`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from flwr.app import RecordDict

from trellis.flower.backchannel import FleetView, Outcome, Tally
from trellis.flower.checkin import is_taking_part
from trellis.flower.delivery import Delivery
from trellis.flower.updates import Update
from trellis.quorum import quorum_count


@dataclass
class Flight:
    """One message on its way to one device.

    Attributes:
        sent_again: Another has taken its place, because it was lost on its way; an answer would count still.
    """

    name: str
    node_id: int
    outcome: str = "open"
    reason: str | None = None
    delivery: Delivery = field(default_factory=Delivery)
    sent_again: bool = False


@dataclass
class Slot:
    """One place in the round and the messages sent for it, by message ID."""

    content: RecordDict
    message_type: str
    flights: dict[str, Flight] = field(default_factory=dict)
    filled_by: str | None = None

    @property
    def open_flights(self) -> dict[str, Flight]:
        """The messages that may still be answered."""
        return {key: flight for key, flight in self.flights.items() if flight.outcome == "open"}

    def worked_on(self, present: set[int]) -> bool:
        """Whether one of these nodes may still answer."""
        return any(f.outcome == "open" and f.node_id in present for f in self.flights.values())


@dataclass(frozen=True)
class Standing:
    """How a phase stands or ended."""

    slots: int
    replied: int
    failed: int
    lost: int
    quorum_reached: bool
    outcomes: tuple[Outcome, ...]


class Exchange:
    """The slots of one phase. Pure: who talks to Flower is `trellis.flower.phase`."""

    def __init__(self, phase: str, quorum: float, *, waits_for_lost: bool = True) -> None:
        self._phase = phase
        self._quorum = quorum
        self._waits_for_lost = waits_for_lost
        self.slots: list[Slot] = []
        self._slot_of: dict[str, Slot] = {}
        self._updates: dict[str, tuple[int, float | None, Tally | None]] = {}

    def add(self, slot: Slot) -> None:
        """Take in a slot that nothing was sent for yet."""
        self.slots.append(slot)

    def sent(self, slot: Slot, message_id: str, flight: Flight) -> None:
        """Note one more message for a slot."""
        slot.flights[message_id] = flight
        self._slot_of[message_id] = slot

    def awaited(self) -> dict[str, Slot]:
        """Return the slots by the IDs of messages that may still be answered."""
        return {key: slot for slot in self.slots if slot.filled_by is None for key in slot.open_flights}

    def uploaded(self, view: FleetView) -> list[str]:
        """Return the IDs of awaited messages whose answer has been announced."""
        announced = {device.message_id for device in view.devices if device.message_id}
        return [message_id for message_id in self.awaited() if message_id in announced]

    def unanswered(self) -> list[str]:
        """Return the IDs of all messages whose reply may still come, though nobody waits for it."""
        return [key for slot in self.slots for key, f in slot.flights.items() if f.outcome == "open"]

    def fill(self, message_id: str, update: Update) -> bool:
        """Note a good reply; returns False if the slot was filled already, and the reply must be dropped."""
        slot = self._slot_of.get(message_id)
        if slot is None or slot.filled_by is not None:
            return False
        slot.filled_by = message_id
        slot.flights[message_id].outcome = "replied"
        self._updates[message_id] = (update.samples, update.loss, update.tally)
        return True

    def fail(self, message_id: str, reason: str) -> None:
        """Note that a message will not be answered with anything usable."""
        slot = self._slot_of.get(message_id)
        if slot is not None and slot.flights[message_id].outcome == "open":
            slot.flights[message_id].outcome = "failed"
            slot.flights[message_id].reason = reason

    def give_up(self, view: FleetView) -> None:
        """Note as failed what devices that have ended the task on their own will not answer any more."""
        ended = {d.node_id: d for d in view.devices if d.online and d.state is not None and d.state.ended}
        if not ended:
            return
        for slot in self.slots:
            for message_id, flight in slot.open_flights.items():
                device = ended.get(flight.node_id)
                if device is not None and device.message_id != message_id:  # that one has come before the end
                    self.fail(message_id, device.reason.message if device.reason else f"it is {device.state}")

    def vacant(self, view: FleetView) -> list[Slot]:
        """Return the slots that nobody present works on: their message may go to one that stands by."""
        present = _present(view)
        return [slot for slot in self._open_slots if not slot.worked_on(present)]

    def undelivered(self, view: FleetView) -> list[tuple[Slot, Flight]]:
        """Return the messages that were lost on their way to devices that are back, noted as sent again."""
        here = {device.node_id: device for device in view.devices if is_taking_part(device)}
        found = [
            (slot, flight)
            for slot in self.slots
            if slot.filled_by is None
            for flight in slot.open_flights.values()
            if not flight.sent_again
            and flight.node_id in here
            and flight.delivery.failed(here[flight.node_id])
        ]
        for _, flight in found:
            flight.sent_again = True
        return found

    def busy_nodes(self) -> set[int]:
        """Return the nodes that were asked in this phase."""
        return {flight.node_id for slot in self.slots for flight in slot.flights.values()}

    def is_complete(self, view: FleetView) -> bool:
        """Whether there is nothing to wait for, given that nobody stands by."""
        present = _present(view)
        if any(slot.worked_on(present) for slot in self._open_slots):
            return False
        # All that are open are lost or have failed. A lost device may come back until the deadline: training
        # waits for it only as long as the quorum needs it, evaluation does not.
        return (
            self.quorum_reached
            or not self._waits_for_lost
            or not any(slot.open_flights for slot in self._open_slots)
        )

    @property
    def replied(self) -> int:
        """How many slots are filled."""
        return sum(slot.filled_by is not None for slot in self.slots)

    @property
    def quorum_reached(self) -> bool:
        """Whether the replies are at least the quorum's share of the slots, rounded up."""
        return bool(self.slots) and self.replied >= quorum_count(self._quorum, len(self.slots))

    def lost(self, view: FleetView) -> int:
        """Return how many devices that were asked are away, their messages open."""
        present = _present(view)
        flights = (flight for slot in self.slots for flight in slot.flights.values())
        return sum(flight.outcome == "open" and flight.node_id not in present for flight in flights)

    def is_deserted(self, view: FleetView) -> bool:
        """Whether replies are wanted, and whoever could give one is away."""
        present = _present(view)
        open_slots = [slot for slot in self._open_slots if slot.open_flights]
        return bool(open_slots) and not any(slot.worked_on(present) for slot in open_slots)

    def close(self, view: FleetView) -> Standing:
        """Return how the phase stands.

        What is open is lost if its device is away, superseded if another has filled its slot, else late.
        """
        present = _present(view)
        outcomes = []
        for slot in self.slots:
            for message_id, flight in slot.flights.items():
                outcome = flight.outcome
                if outcome == "open" and flight.sent_again:
                    continue
                if outcome == "open" and flight.node_id not in present:
                    outcome = "lost"
                elif outcome == "open":
                    outcome = "late" if slot.filled_by is None else "superseded"
                samples, loss, tally = self._updates.get(message_id, (None, None, None))
                region, _, device = flight.name.rpartition("/")
                outcomes.append(
                    Outcome.model_construct(
                        region=region,
                        device=device,
                        phase=self._phase,
                        outcome=outcome,
                        reason=flight.reason,
                        samples=samples,
                        loss=loss,
                        tally=tally,
                    )
                )
        counted = [outcome.outcome for outcome in outcomes]
        return Standing(
            slots=len(self.slots),
            replied=self.replied,
            failed=counted.count("failed"),
            lost=counted.count("lost"),
            quorum_reached=self.quorum_reached,
            outcomes=tuple(outcomes),
        )

    @property
    def _open_slots(self) -> list[Slot]:
        return [slot for slot in self.slots if slot.filled_by is None]


def _present(view: FleetView) -> set[int]:
    return _node_ids(device.node_id for device in view.devices if is_taking_part(device))


def _node_ids(ids: Iterable[int | None]) -> set[int]:
    return {node_id for node_id in ids if node_id is not None}
