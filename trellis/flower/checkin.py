"""Check-in: which Flower node is which device.

A device's execution on MQTT claims a Flower node; that topic only the device itself may write. The server
hands that node a nonce in a query message. The claim is believed once the node has answered as that device
and the device's execution shows the nonce: then node and device are one. Check-ins are idempotent.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from flwr.app import ConfigRecord, Message, MessageType, RecordDict

from trellis.flower.backchannel import FleetDevice, FleetView
from trellis.flower.delivery import Delivery
from trellis.flower.inline import OFFER
from trellis.flower.mail import Mail
from trellis.flower.pulling import Pulled, Puller
from trellis.flower.updates import one_line
from trellis.payloads import ExecutionState, Phase

logger = logging.getLogger(__name__)

_ASK_AGAIN_S = 60.0
_ANSWER_S = 0.5
"""How long a step waits for answers that were announced; one that is not all there is seen later."""


@dataclass(frozen=True)
class Member:
    """A device that has checked in: `name` is `region/device`."""

    name: str
    node_id: int
    samples: int


@dataclass
class _Question:
    message_id: str
    nonce: str
    asked_at: float
    delivery: Delivery
    answer: Message | None = None
    unreadable: bool = False
    pulled: bool = False
    judged: set[str] = field(default_factory=set)


def is_taking_part(device: FleetDevice) -> bool:
    """Whether a device is connected, works on this task, and claims a node."""
    return device.online and device.state is ExecutionState.IN_PROGRESS and device.node_id is not None


class CheckIn:
    """The members of one task.

    Attributes:
        newcomers: Devices that work on the task and have not checked in yet.
        queued: Devices that are here, and come once they have done the tasks before this one, or have what
            they train from.

    Args:
        mail: Sends messages, and takes in replies.
        task: The task's name, which a device must be working on.
        revision: Its revision likewise; 0 asks for none.
        on_asked: Called with the number of queries just sent, so that devices are told to pull.
    """

    def __init__(self, mail: Mail, task: str, on_asked: Callable[[int], None], *, revision: int = 0) -> None:
        self._mail = mail
        self._revision = revision
        self._task = task
        self._on_asked = on_asked
        self._questions: dict[int, _Question] = {}  # by node: two that claim it share one
        self._members: dict[str, Member] = {}
        self._puller = Puller(mail)
        self.newcomers = self.queued = 0
        self._deserted_at: float | None = None

    @property
    def deserted_s(self) -> float:
        """For how long no member has been here; 0 while one is, or none ever was."""
        return 0.0 if self._deserted_at is None else time.monotonic() - self._deserted_at

    def step(self, view: FleetView) -> None:
        """Ask the nodes that are newly claimed, and take in answers."""
        taken = {member.node_id for member in self.members(view)}
        strangers = [d for d in view.devices if is_taking_part(d) and d.node_id not in taken]
        now = time.monotonic()
        unasked: dict[int, int] = {}
        answered: list[tuple[FleetDevice, _Question]] = []
        for device in strangers:
            node_id = device.node_id or 0
            question = self._questions.get(node_id)
            if question is None or now - question.asked_at > _ASK_AGAIN_S:
                unasked[node_id] = device.connects
            elif question.message_id != device.message_id and question.delivery.failed(device):
                logger.info("the query of device=%s never reached it, and is sent again", device.name)
                unasked[node_id] = device.connects
            elif device.nonce == question.nonce and device.message_id == question.message_id:
                answered.append((device, question))
        if answered:
            self._pull_answers([question for _, question in answered])
            for device, question in answered:
                self._take_answer(device, question)
        if not self._members or any(is_taking_part(d) and self._knows(d) for d in view.devices):
            self._deserted_at = None
        elif self._deserted_at is None:
            self._deserted_at = now
        self.newcomers = sum(_is_coming(d) and not self._knows(d) for d in view.devices)
        self.queued = sum(map(_comes_later, view.devices))
        if unasked:
            self._ask(unasked, now)

    def members(self, view: FleetView) -> list[Member]:
        """Return who has checked in and is here now, by name."""
        here = (self._members.get(d.name) for d in view.devices if is_taking_part(d) and self._knows(d))
        return sorted((member for member in here if member is not None), key=lambda member: member.name)

    def name_of(self, node_id: int) -> str:
        """Return a node's device, or the node ID as text if it never checked in."""
        for member in self._members.values():
            if member.node_id == node_id:
                return member.name
        return str(node_id)

    def _knows(self, device: FleetDevice) -> bool:
        member = self._members.get(device.name)
        return member is not None and member.node_id == device.node_id

    def _ask(self, connects: dict[int, int], now: float) -> None:
        node_ids = sorted(connects)
        nonces = [secrets.token_hex(16) for _ in node_ids]
        messages = [
            Message(
                RecordDict({"config": self._question(nonce)}),
                dst_node_id=node_id,
                message_type=MessageType.QUERY,
                group_id=OFFER,
            )
            for node_id, nonce in zip(node_ids, nonces, strict=True)
        ]
        message_ids = list(self._mail.push_messages(messages))
        for node_id, nonce, message_id in zip(node_ids, nonces, message_ids, strict=True):
            # One that the SuperLink refused, of a node that it does not know, is remembered as well.
            self._questions[node_id] = _Question(message_id or "", nonce, now, Delivery(connects[node_id]))
        accepted = sum(bool(message_id) for message_id in message_ids)
        if accepted:
            self._on_asked(accepted)

    def _question(self, nonce: str) -> ConfigRecord:
        return ConfigRecord({"task": self._task, "revision": self._revision, "nonce": nonce})

    def _take_answer(self, device: FleetDevice, question: _Question) -> None:
        # Kept: a reply is handed out once, and whoever copies a nonce must not use it up for its owner.
        if question.answer is None or device.name in question.judged:
            return
        question.judged.add(device.name)
        member = _member(device, question, question.answer)
        if member is not None:
            self._members[device.name] = member
            del self._questions[member.node_id]
            logger.info(
                "checked in device=%s node=%d samples=%d", member.name, member.node_id, member.samples
            )

    def _pull_answers(self, answered: list[_Question]) -> None:
        due = {q.message_id: q for q in answered if q.answer is None and not q.unreadable}
        fresh = {key for key, question in due.items() if not question.pulled}
        for question in due.values():
            question.pulled = True
        self._puller.start(due)
        # Only answers that were announced just now are waited for: one that hangs must not slow every step.
        until = time.monotonic() + _ANSWER_S
        while True:
            for pulled in self._puller.take(_ANSWER_S if fresh else 0.0):
                fresh.discard(pulled.message_id)
                self._note(pulled)
            if not fresh or not self._puller.busy or time.monotonic() >= until:
                return

    def _note(self, pulled: Pulled) -> None:
        for question in self._questions.values():
            if question.message_id == pulled.message_id:
                question.answer, question.unreadable = pulled.reply, pulled.problem is not None


def _is_coming(device: FleetDevice) -> bool:
    return device.online and device.state is ExecutionState.IN_PROGRESS


def _comes_later(device: FleetDevice) -> bool:
    # An export takes a minute on a small server, and is no fault of the device's.
    return device.online and (device.state is ExecutionState.QUEUED or device.phase is Phase.FETCHING)


def _member(device: FleetDevice, question: _Question, reply: Message) -> Member | None:
    if reply.has_error():
        logger.warning(
            "check-in of device=%s failed: %s", device.name, one_line(reply.error.reason or "no reason")
        )
        return None
    answer = reply.content.config_records.get("config", ConfigRecord())
    named = "/".join(str(answer.get(key, "")) for key in ("region", "device"))
    if named != device.name or answer.get("nonce") != question.nonce:
        logger.warning("node=%s answered as %s, but device=%s claims it", device.node_id, named, device.name)
        return None
    samples = answer.get("samples", 0)
    return Member(device.name, device.node_id or 0, samples if isinstance(samples, int) else 0)
