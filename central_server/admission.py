"""Whether the server takes a task: signature, window, and whether it has what the task names.

admit
├── PayloadError, DescriptorError   no envelope, or no descriptor
├── InvalidInput                    the model does not fit the data's shape, or the strategy its numbers
└── Refused                         untrusted, signature, clock, expired, model, strategy, data
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import chain

from models.registry import find_model, require_fit
from trellis.descriptor import TaskDescriptor, parse_json
from trellis.envelope import Envelope, Keyring
from trellis.errors import Fault, InvalidInput, Refused
from trellis.nearest import did_you_mean
from trellis.tier.strategies import check_strategy

CLOCK_TOLERANCE = timedelta(minutes=2)
"""An operator's clock may be a little ahead of the server's."""

_FIELDS = {
    "clock": "issued_at",
    "expired": "expires_at",
    "aggregation": "aggregation",
    "model": "model.name",
    "data": "evaluate.on",
}
"""What a refusal is about, where several things are wrong with one task."""


@dataclass(frozen=True)
class Admitted:
    """A task whose envelope a pinned key has signed."""

    envelope: Envelope
    descriptor: TaskDescriptor
    keyid: str


@dataclass(frozen=True)
class Admission:
    """The server's rules for what comes.

    Attributes:
        data: Sources of the data sets that the server can evaluate on, by name.
    """

    keyring: Keyring
    data: Mapping[str, str] = field(default_factory=dict)

    def verified(self, body: bytes) -> Admitted:
        """Return what a pinned key has signed, not yet checked further.

        Raises:
            InvalidInput: It is no envelope, or holds no descriptor.
            Refused: No pinned key has signed it.
        """
        envelope = Envelope.parse(body)
        keyid = self.keyring.verify(envelope)
        return Admitted(envelope, parse_json(envelope.payload), keyid)

    def check(self, descriptor: TaskDescriptor, now: datetime | None = None) -> None:
        """Return if the server can do this new task.

        Raises:
            Refused: It may not or cannot; the code says which rule.
            InvalidInput: The strategy is unknown, the model does not take samples of that shape, or several
                rules say no, each of them a fault.
        """
        here = now or datetime.now(UTC)
        errors: list[Refused | InvalidInput] = []
        for rule in (
            partial(_check_window, now=here),
            _check_model,
            check_strategy,
            self._check_data,
        ):
            try:
                rule(descriptor)
            except (Refused, InvalidInput) as error:
                errors.append(error)
        if len(errors) == 1:
            raise errors[0]
        if errors:
            raise InvalidInput(f"task {descriptor.task!r}", chain.from_iterable(map(_faults, errors)))

    def _check_data(self, descriptor: TaskDescriptor) -> None:
        name = descriptor.data.name
        if "server" in descriptor.evaluate.on and name not in self.data:
            has = (", ".join(sorted(self.data)) or "none") + did_you_mean(name, self.data, before="; ")
            raise Refused(
                "data",
                f"task {descriptor.task!r} is to be evaluated on the server with {name!r}, which has: {has}. "
                f"Start it with --data {name}=PATH, or let the task evaluate on: [devices]",
            )


def _check_model(descriptor: TaskDescriptor) -> None:
    require_fit(find_model(descriptor.model.name), descriptor.data.shape)


def _faults(error: Refused | InvalidInput) -> tuple[Fault, ...]:
    return (Fault(_FIELDS.get(error.code, ""), str(error)),) if isinstance(error, Refused) else error.faults


def _check_window(descriptor: TaskDescriptor, now: datetime) -> None:
    if descriptor.issued_at > now + CLOCK_TOLERANCE:
        raise Refused(
            "clock",
            f"task {descriptor.task!r} was issued at {descriptor.issued_at.isoformat()}, and here it is "
            f"{now.isoformat(timespec='seconds')}: set the clocks",
        )
    if descriptor.expires_at <= now:
        raise Refused(
            "expired",
            f"task {descriptor.task!r} expired at {descriptor.expires_at.isoformat()}, and here it is "
            f"{now.isoformat(timespec='seconds')}: issue it anew",
        )
