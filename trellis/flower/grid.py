"""`TrellisGrid`: Flower's public `Grid`, made for a fleet. Any Flower strategy runs on it unchanged.

It packs what goes out and unpacks what comes in, shows strategies only devices that checked in and are here,
waits on the fleet's own word instead of sleeping, pulls a reply when its upload was announced (or at the
deadline), closes a phase by deadline and quorum, replaces lost devices, and checks every update before a
strategy sees it. For strategies that are functions of sums it folds the updates as they arrive.

    TrellisGrid.send_and_receive
    ├── Canceled       the task was called off
    └── Unavailable    the service is gone
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from trellis.errors import Canceled
from trellis.flower.channel import Fleet
from trellis.flower.checkin import CheckIn, Member
from trellis.flower.exchange import Standing
from trellis.flower.mail import mail_of
from trellis.flower.packing import packed
from trellis.flower.parcels import unwrap, wrapped
from trellis.flower.phase import Announcer, Phase, Policy
from trellis.payloads import Round
from trellis.tensors import is_packed, unpack

if TYPE_CHECKING:
    from flwr.supercore.run import Run


class TrellisGrid(Grid):
    """A grid over the devices of one task.

    Args:
        grid: The grid that Flower hands to a ServerApp.
        fleet: Who is here, and how to announce.
        task: The task's name.
        revision: The descriptor's revision, which a device must be working on; 0 asks for none.
        policy: Deadline and quorum of a phase.
        rounds: Rounds of the task, for announcements.
        fold: Hand a strategy one synthetic reply, the weighted mean of all updates with their summed
            examples, instead of the list. Only for strategies that are functions of those sums.
        due: Metrics that a strategy reads of every update, none negative; one without them is dropped.

    Attributes:
        on_waiting: Told in a sentence for people when a phase waits for devices that are gone, and None once
            it does so no more.
    """

    def __init__(
        self,
        grid: Grid,
        fleet: Fleet,
        *,
        task: str,
        revision: int = 0,
        policy: Policy | None = None,
        rounds: int = 0,
        fold: bool = False,
        due: Sequence[str] = (),
    ) -> None:
        self._grid = grid
        self._mail = mail_of(grid)
        self._fleet = fleet
        self._task, self._revision = task, revision
        self._policy = policy or Policy()
        self._fold, self._due = fold, tuple(due)
        self.on_waiting: Callable[[str | None], None] = lambda _: None
        self._announcer = Announcer(fleet, rounds)
        self._checkin = CheckIn(self._mail, task, self._announcer.sent, revision=revision)
        self._stale: set[str] = set()
        self._shown: list[int] | None = None
        self.last: Standing | None = None

    @property
    def traffic(self) -> tuple[int, int]:
        """Tensor bytes of this round: from devices, and to devices."""
        return self._announcer.bytes_up, self._announcer.bytes_down

    def begin_round(self) -> None:
        """Begin a round: its traffic is counted from zero."""
        self._announcer.begin_round()

    def wait_members(self, after_version: int, timeout_s: float) -> tuple[int, list[Member]]:
        """Return the fleet's version and its members once something has changed, or after `timeout_s`."""
        view = self._fleet.wait(after_version, timeout_s)
        if view.canceled or view.over:
            raise Canceled(view.why_over)
        self._checkin.step(view)
        return view.version, self._checkin.members(view)

    @property
    def newcomers(self) -> int:
        """How many devices are on their way: here, at work on this task, and not checked in yet."""
        return self._checkin.newcomers

    @property
    def queued(self) -> int:
        """How many devices are here, and do another task first."""
        return self._checkin.queued

    @property
    def deserted_s(self) -> float:
        """For how long no device has been here; 0 while one is, or none ever was."""
        return self._checkin.deserted_s

    def show_only(self, members: Sequence[Member] | None) -> None:
        """Show strategies only `members`, who were selected; all others stand by. None shows everybody."""
        self._shown = None if members is None else [member.node_id for member in members]

    def say(self, standing: Round) -> None:
        """Announce where the round stands."""
        self._announcer.say(standing)

    def set_run(self, run: Run) -> None:
        """Set the run this grid operates in."""
        self._grid.set_run(run)

    @property
    def run(self) -> Run:
        """The Flower run."""
        return self._grid.run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Return a message; Flower's deprecated way."""
        return self._grid.create_message(content, message_type, dst_node_id, group_id, ttl)

    def get_node_ids(self) -> Iterable[int]:
        """Return the nodes that a strategy may choose from."""
        if self._shown is not None:
            return list(self._shown)  # as selected: one that is lost meanwhile is the phase's business
        _, members = self.wait_members(-1, 0.0)
        return [member.node_id for member in members]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages, packed, and have their devices pull."""
        message_ids = list(
            self._mail.push_messages(wrapped(packed(messages, task=self._task, revision=self._revision)))
        )
        self._announcer.sent(len(message_ids))
        return message_ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies that are there, unpacked."""
        replies = list(self._mail.pull_messages(message_ids))
        for reply in replies:
            if reply.has_content():
                reply.content = unwrap(reply.content)
                for key, record in reply.content.array_records.items():
                    reply.content[key] = unpack(record) if is_packed(record) else record
        return replies

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Send a phase's messages and return the replies that passed the checks, by device name.

        Errors, late replies and updates that do not fit are left out; `last` says what became of everybody.
        """
        outgoing = packed(messages, task=self._task, revision=self._revision)
        if not outgoing:
            self.last = None
            return []
        deadline_s = self._policy.deadline_s if timeout is None else min(timeout, self._policy.deadline_s)
        phase = Phase(
            mail=self._mail,
            fleet=self._fleet,
            checkin=self._checkin,
            announcer=self._announcer,
            policy=replace(self._policy, deadline_s=deadline_s),
            outgoing=outgoing,
            fold=self._fold,
            due=self._due,
            stale=self._stale,
            on_waiting=self.on_waiting,
        )
        replies, self.last = phase.run()
        return replies
