"""Whether the server takes a task: signature, window, and whether it has what the task names.

admit
├── PayloadError, DescriptorError   no envelope, or no descriptor
├── InvalidInput                    the model does not fit the data's shape, or the strategy its numbers
└── Refused                         untrusted, signature, clock, expired, model, strategy, data
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial

from models.registry import find_model, require_fit
from trellis.admission_rules import check_window, parse_posted, raise_together, rule_of, window_rule
from trellis.descriptor import TaskDescriptor
from trellis.descriptor_rules import Rule
from trellis.envelope import Envelope, Keyring
from trellis.errors import InvalidInput, Refused
from trellis.nearest import did_you_mean
from trellis.tier.strategies import STRATEGY_RULES, check_strategy


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
            InvalidInput: It is no envelope, or holds no descriptor; what `check` would say is told with it.
            Refused: No pinned key has signed it.
        """
        envelope = Envelope.parse(body)
        keyid = self.keyring.verify(envelope)
        return Admitted(envelope, parse_posted(envelope.payload, self._rules()), keyid)

    def check(self, descriptor: TaskDescriptor, now: datetime | None = None) -> None:
        """Return if the server can do this new task.

        Raises:
            Refused: It may not or cannot; the code says which rule.
            InvalidInput: The strategy is unknown, the model does not take samples of that shape, or several
                rules say no, each of them a fault.
        """
        here = now or datetime.now(UTC)
        errors: list[Refused | InvalidInput] = []
        for rule in (partial(check_window, now=here), _check_model, check_strategy, self._check_data):
            try:
                rule(descriptor)
            except (Refused, InvalidInput) as error:
                errors.append(error)
        raise_together(f"task {descriptor.task!r}", errors)

    def _rules(self) -> tuple[Rule, ...]:
        """Return what `check` looks at, for a descriptor that is faulty besides."""
        return (
            window_rule(datetime.now(UTC)),
            rule_of(_check_model, "model", "data"),
            *STRATEGY_RULES,
            rule_of(self._check_data, "task", "data", "evaluate"),
        )

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
