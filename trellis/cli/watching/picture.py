"""What MQTT says, folded into one picture: pure, message by message.

A picture is a value: `fold(picture, message)` returns the next. Messages may come twice, late, or again after
a reconnect; one that cannot be read changes nothing but `unreadable`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar

from trellis.errors import PayloadError
from trellis.mqtt.messages import BusMessage
from trellis.payloads import (
    CentralTask,
    Execution,
    Info,
    Log,
    Payload,
    Presence,
    Progress,
    Round,
    RoundPhase,
    State,
    TaskStatus,
)
from trellis.topics import Address, Kind, Topics

MAX_LOGS = 5
_LOUD = {"WARNING", "ERROR", "CRITICAL"}

P = TypeVar("P", bound=Payload)
K = TypeVar("K", bound=Hashable)
Entry = TypeVar("Entry")


@dataclass(frozen=True)
class LogLine:
    """A warning or worse that a device, or `gateway`, logged."""

    region: str
    device: str
    task: str
    level: str
    message: str

    @property
    def brief(self) -> str:
        """The message in one line: of a traceback what it was about, and what it came to."""
        lines = self.message.strip().splitlines() or [""]
        return lines[0] if len(lines) == 1 else f"{lines[0]} … {lines[-1].strip()}"


@dataclass(frozen=True)
class DeviceView:
    """One device; `executions` and `progress` are by task."""

    state: State | None = None
    info: Info | None = None
    executions: Mapping[str, Execution] = field(default_factory=dict)
    progress: Mapping[str, Progress] = field(default_factory=dict)

    @property
    def online(self) -> bool:
        return self.state is not None and self.state.state is Presence.ONLINE

    def current(self, task: str | None = None) -> tuple[str, Execution] | None:
        """Return the execution to show: of `task`, or else one that goes on, or else the newest."""
        mine = {name: one for name, one in self.executions.items() if task in (None, name)}
        if not mine:
            return None
        return max(mine.items(), key=lambda item: (not item[1].state.ended, item[1].ts))


@dataclass(frozen=True)
class TierPicture:
    """One task at one tier, the centre or a region: the present round, and those that are done.

    Attributes:
        execution: What a region does as a member of the tier above, if it aggregates at all: without it, its
            rounds repeat the centre's.
    """

    round: Round | None = None
    done: Mapping[int, Round] = field(default_factory=dict)
    execution: Execution | None = None


@dataclass(frozen=True)
class TaskPicture:
    """One task: its state at the server, its rounds there and in the regions, and the regions' status."""

    central: CentralTask | None = None
    centre: TierPicture = TierPicture()
    tiers: Mapping[str, TierPicture] = field(default_factory=dict)
    statuses: Mapping[str, TaskStatus] = field(default_factory=dict)

    @property
    def round(self) -> Round | None:
        """The centre's present round."""
        return self.centre.round

    @property
    def done(self) -> Mapping[int, Round]:
        """The centre's finished rounds."""
        return self.centre.done

    @property
    def regional(self) -> Mapping[str, TierPicture]:
        """The regions that aggregate, by name."""
        return {region: tier for region, tier in sorted(self.tiers.items()) if tier.execution is not None}


@dataclass(frozen=True)
class Picture:
    """Everything seen so far; devices are by (region, device)."""

    server: State | None = None
    gateways: Mapping[str, State] = field(default_factory=dict)
    devices: Mapping[tuple[str, str], DeviceView] = field(default_factory=dict)
    tasks: Mapping[str, TaskPicture] = field(default_factory=dict)
    logs: tuple[LogLine, ...] = ()
    unreadable: int = 0

    @property
    def regions(self) -> list[str]:
        """Every region that a gateway or device of it was seen of."""
        return sorted({*self.gateways, *(region for region, _ in self.devices)})


_Change = Callable[[TaskPicture], TaskPicture]


def fold(picture: Picture, message: BusMessage, topics: Topics) -> Picture:
    """Return the picture after `message`."""
    try:
        address = topics.parse(message.topic)
        if address.kind in _CENTRAL:
            return _fold_central(picture, address, message.payload)
        if address.device:
            return _fold_device(picture, address, message.payload)
        return _fold_region(picture, address, message.payload)
    except PayloadError:
        return replace(picture, unreadable=picture.unreadable + 1)


_CENTRAL = {Kind.CENTRAL_STATE, Kind.CENTRAL_TASK_STATE, Kind.CENTRAL_TASK_ROUND}


def _fold_central(picture: Picture, address: Address, payload: bytes) -> Picture:
    if address.kind is Kind.CENTRAL_STATE:
        return replace(picture, server=_read(State, payload))
    if address.kind is Kind.CENTRAL_TASK_STATE:
        return _with_task(picture, address.task, partial(replace, central=_read(CentralTask, payload)))
    now = _read(Round, payload)
    return _with_task(picture, address.task, lambda task: replace(task, centre=_with_round(task.centre, now)))


def _fold_region(picture: Picture, address: Address, payload: bytes) -> Picture:
    if address.kind is Kind.GATEWAY_STATE:
        state = _read(State, payload)
        return replace(picture, gateways=_put(picture.gateways, address.region, state))
    if address.kind is Kind.TASK_STATUS:
        status = _read(TaskStatus, payload)
        return _with_task(
            picture,
            address.task,
            lambda task: replace(task, statuses=_put(task.statuses, address.region, status)),
        )
    if address.kind is Kind.TASK_ROUND:
        now = _read(Round, payload)
        return _with_tier(picture, address, lambda tier: _with_round(tier, now))
    if address.kind is Kind.GATEWAY_EXECUTION:
        execution = _read(Execution, payload)
        return _with_tier(picture, address, lambda tier: replace(tier, execution=execution))
    if address.kind is Kind.GATEWAY_LOG:
        return _with_log(picture, address, _read(Log, payload))
    return picture  # descriptors are not for watching


def _fold_device(picture: Picture, address: Address, payload: bytes) -> Picture:
    key = (address.region, address.device)
    before = picture.devices.get(key, DeviceView())
    after = before
    if address.kind is Kind.DEVICE_STATE:
        state = _read(State, payload)
        if state is None:
            return replace(picture, devices=_put(picture.devices, key, None))
        after = replace(before, state=state)
    elif address.kind is Kind.DEVICE_INFO:
        after = replace(before, info=_read(Info, payload))
    elif address.kind is Kind.EXECUTION:
        after = _with_execution(before, address.task, _read(Execution, payload))
    elif address.kind is Kind.PROGRESS:
        progress = _put(before.progress, address.task, _read(Progress, payload))
        after = replace(before, progress=progress)
    elif address.kind is Kind.LOG:
        return _with_log(picture, address, _read(Log, payload))
    return replace(picture, devices=_put(picture.devices, key, after))


def _with_execution(device: DeviceView, task: str, execution: Execution | None) -> DeviceView:
    known = device.executions.get(task)
    if known and execution and execution.version < known.version and execution.ts < known.ts:
        return device  # QoS 1 redelivers: an older one that arrives late
    progress = (
        device.progress if execution and not execution.state.ended else _put(device.progress, task, None)
    )
    return replace(device, executions=_put(device.executions, task, execution), progress=progress)


def _with_round(tier: TierPicture, now: Round | None) -> TierPicture:
    if now is None:
        return replace(tier, round=None)
    if tier.round and now.ts < tier.round.ts:
        return tier
    done = _put(tier.done, now.round, now) if now.phase is RoundPhase.DONE and now.round else tier.done
    return replace(tier, round=now, done=done)


def _with_tier(picture: Picture, address: Address, change: Callable[[TierPicture], TierPicture]) -> Picture:
    def changed(task: TaskPicture) -> TaskPicture:
        tier = change(task.tiers.get(address.region, TierPicture()))
        gone = tier.round is None and tier.execution is None
        return replace(task, tiers=_put(task.tiers, address.region, None if gone else tier))

    return _with_task(picture, address.task, changed)


def _with_task(picture: Picture, name: str, change: _Change) -> Picture:
    task = change(picture.tasks.get(name, TaskPicture()))
    gone = task.central is None and task.round is None and not task.statuses and not task.tiers
    return replace(picture, tasks=_put(picture.tasks, name, None if gone else task))


def _with_log(picture: Picture, address: Address, log: Log | None) -> Picture:
    if log is None or log.level not in _LOUD:
        return picture
    line = LogLine(address.region, address.device or "gateway", address.task, log.level, log.message)
    return replace(picture, logs=(*picture.logs, line)[-MAX_LOGS:])


def _read(kind: type[P], payload: bytes) -> P | None:
    # An empty retained payload means removed.
    return kind.parse(payload) if payload else None


def _put(mapping: Mapping[K, Entry], key: K, value: Entry | None) -> Mapping[K, Entry]:
    if value is None:
        return {name: one for name, one in mapping.items() if name != key}
    return {**mapping, key: value}
