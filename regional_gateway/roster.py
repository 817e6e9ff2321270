"""Who is in the region and what becomes of its tasks there: folded from what devices publish, without I/O."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from trellis.errors import PayloadError
from trellis.payloads import Execution, ExecutionState, Info, Presence, State
from trellis.topics import Address, Kind

MAX_EXECUTIONS = 256
"""Tasks remembered for one device: what is said beyond that pushes out the oldest."""


V = TypeVar("V")


@dataclass(frozen=True)
class Device:
    """What is known of one device; `state` is `None` until it was heard."""

    name: str
    state: State | None = None
    info: Info | None = None
    executions: Mapping[str, Execution] = field(default_factory=dict)

    @property
    def online(self) -> bool:
        """Whether it is connected to the region's broker."""
        return self.state is not None and self.state.state is Presence.ONLINE

    @property
    def active(self) -> tuple[str, Execution] | None:
        """The task that it works on, and how far it is."""
        running = (
            (task, one) for task, one in self.executions.items() if one.state is ExecutionState.IN_PROGRESS
        )
        return next(running, None)


class Roster:
    """The region's devices."""

    def __init__(self) -> None:
        self._met: set[str] = set()  # whoever had a state, whether or not it is known now
        self._states: dict[str, State] = {}
        self._infos: dict[str, Info] = {}
        self._executions: dict[str, dict[str, Execution]] = {}
        self._counts: dict[str, Counter[ExecutionState]] = {}
        self._pushed_out: list[tuple[str, str]] = []

    def __len__(self) -> int:
        return len(self._names())

    def fold(self, address: Address, payload: bytes) -> bool:
        """Take in what came on a device's topic; return whether it changed anything.

        An empty payload removes. Dropped are: repetitions, an execution older than the one known, and the
        will of an earlier process that arrives after the present one has said that it is online.

        Raises:
            PayloadError: The payload breaks its schema, or the topic is no device's.
        """
        match address.kind:
            case Kind.DEVICE_STATE:
                return self._fold_state(address.device, State.parse(payload) if payload else None)
            case Kind.DEVICE_INFO:
                return _put(self._infos, address.device, Info.parse(payload) if payload else None)
            case Kind.EXECUTION:
                execution = Execution.parse(payload) if payload else None
                return self._fold_execution(address.device, address.task, execution)
            case _:
                raise PayloadError(f"topic {address.kind.value}", "is no device's")

    def take_pushed_out(self) -> list[tuple[str, str]]:
        """Return the executions, by device and task, that newer ones pushed out since the last time."""
        taken, self._pushed_out = self._pushed_out, []
        return taken

    def devices(self) -> list[Device]:
        """Return all devices by name."""
        return [self._device(name) for name in sorted(self._names())]

    def executions(self, task: str) -> dict[str, Execution]:
        """Return what each device made of `task`, by the device's name."""
        found = {name: tasks[task] for name, tasks in self._executions.items() if task in tasks}
        return dict(sorted(found.items()))

    def count(self, task: str) -> dict[ExecutionState, int]:
        """Return how many devices are in each state of `task`; states without any are left out."""
        counts = self._counts.get(task, Counter())
        return {state: counts[state] for state in ExecutionState if counts[state]}

    def has_begun(self, task: str, revision: int) -> bool:
        """Whether a device is at work on this revision of `task`."""
        return any(
            one.state is ExecutionState.IN_PROGRESS and one.revision == revision
            for one in self.executions(task).values()
        )

    def forget_presence(self) -> None:
        """Know of no device whether it is there, until it is heard again: the broker was away."""
        self._states.clear()

    def hears(self, name: str) -> bool:
        """Whether a device has said that it is there, or its will that it is not."""
        return name in self._states

    def _fold_state(self, name: str, state: State | None) -> bool:
        known = self._states.get(name)
        if known is not None and state is not None and _is_old_will(known, state):
            return False
        if state is None:
            self._met.discard(name)
        else:
            self._met.add(name)
        return _put(self._states, name, state)

    def _fold_execution(self, name: str, task: str, execution: Execution | None) -> bool:
        known = self._executions.get(name, {}).get(task)
        if known is not None and execution is not None and _is_older(known, execution):
            return False
        if known == execution:
            return False
        self._put_execution(name, task, execution)
        tasks = self._executions.get(name, {})
        if len(tasks) > MAX_EXECUTIONS:
            oldest = min(tasks, key=lambda one: tasks[one].ts)
            self._put_execution(name, oldest, None)
            self._pushed_out.append((name, oldest))
        return True

    def _put_execution(self, name: str, task: str, execution: Execution | None) -> None:
        tasks = self._executions.setdefault(name, {})
        counts = self._counts.setdefault(task, Counter())
        if (known := tasks.pop(task, None)) is not None:
            counts[known.state] -= 1
        if execution is not None:
            tasks[task] = execution
            counts[execution.state] += 1
        if not tasks:
            del self._executions[name]
        if not counts.total():
            del self._counts[task]

    def _names(self) -> set[str]:
        return {*self._states, *self._infos, *self._executions, *self._met}

    def _device(self, name: str) -> Device:
        return Device(
            name, self._states.get(name), self._infos.get(name), dict(self._executions.get(name, {}))
        )


def _is_old_will(known: State, state: State) -> bool:
    # A broker fires the will of a lost connection up to 1.5 keepalives late, when the device may long be
    # back under another boot_id. Should it be the newer after all, the device publishes its birth again.
    return (
        known.state is Presence.ONLINE
        and state.state is Presence.OFFLINE
        and state.boot_id != known.boot_id
        and state.since <= known.since
    )


def _is_older(known: Execution, execution: Execution) -> bool:
    # A device that lost its journal counts from the start again: its clock tells it from a late message.
    return execution.version <= known.version and execution.ts <= known.ts


def _put(values: dict[str, V], name: str, value: V | None) -> bool:
    if values.get(name) == value:
        return False
    if value is None:
        del values[name]
    else:
        values[name] = value
    return True
