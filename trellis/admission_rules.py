"""What a task's reader looks at besides the descriptor itself: its window, and whatever else it refuses for.

A refusal stands alone where it is all that is wrong, and is one fault among others where there are more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timedelta
from functools import partial
from itertools import chain

from trellis.descriptor import TaskDescriptor, parse_json
from trellis.descriptor_rules import Rule
from trellis.errors import TASK_FIELDS, DescriptorError, Fault, InvalidInput, Refused

CLOCK_TOLERANCE = timedelta(minutes=2)
"""An operator's clock may be a little ahead of the reader's."""


def check_window(descriptor: TaskDescriptor, now: datetime) -> None:
    """Return if the task holds now.

    Raises:
        Refused: `clock` if it was issued in the future, `expired`.
    """
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


def window_rule(now: datetime) -> Rule:
    """Return the rule that a task holds now."""
    return rule_of(partial(check_window, now=now), "task", "issued_at", "expires_at")


def rule_of(check: Callable[[TaskDescriptor], object], *needs: str) -> Rule:
    """Return the rule that `check` raises nothing; it looks at the fields `needs`."""
    return Rule(needs, partial(_raised, check))


def faults_of_refusal(error: Refused | InvalidInput) -> tuple[Fault, ...]:
    """Return what is wrong, each with its field."""
    return (
        (Fault(TASK_FIELDS.get(error.code, ""), str(error)),) if isinstance(error, Refused) else error.faults
    )


def parse_posted(payload: str, rules: Iterable[Rule]) -> TaskDescriptor:
    """Return the descriptor that was posted; if it is faulty, `rules` tell what else would be refused.

    Raises:
        DescriptorError: It is none; every fault is named with its field.
    """
    try:
        return parse_json(payload)
    except DescriptorError:
        return parse_json(payload, rules=rules)


def raise_together(what: str, errors: list[Refused | InvalidInput]) -> None:
    """Raise what was found wrong: one error as it is, several as faults of `what`."""
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise InvalidInput(what, chain.from_iterable(map(faults_of_refusal, errors)))


def _raised(check: Callable[[TaskDescriptor], object], descriptor: TaskDescriptor) -> Iterator[Fault]:
    try:
        check(descriptor)
    except (Refused, InvalidInput) as error:
        yield from faults_of_refusal(error)
