"""A tier's members of one task as their topics show them, in views whose version grows with real changes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from trellis.flower.backchannel import GATEWAY, FleetDevice, FleetView
from trellis.identifiers import CENTRAL
from trellis.payloads import Execution, Presence, State

logger = logging.getLogger(__name__)

Key = tuple[str, str]


@dataclass
class _Seen:
    """What a device last said.

    Attributes:
        floor: The newest version of its execution; older ones arrive late and are dropped.
    """

    state: State | None = None
    execution: Execution | None = None
    floor: int = 0
    complained: bool = field(default=False, compare=False)

    @property
    def online(self) -> bool:
        return self.state is not None and self.state.state is Presence.ONLINE


class TaskFleet:
    """The members of one task at one tier: devices, and gateways of regions that aggregate.

    Feed it states and executions in any order and as often as they come: it is idempotent. Waiters are
    woken once the version has grown, or at once by `close`.

    A region's devices are members of the nearest tier above them that aggregates: their own region, one that
    its gateway's `parent` leads up to, or the centre. A region that aggregates is a member of the next.
    The way up ends at a region that the task does not name: above it is the centre.

    Args:
        task: The task's name.
        regions: All regions that the task names.
        regional: Those of them that aggregate.
        here: The tier that this is: `central`, or a region's name.
    """

    def __init__(
        self, task: str, regions: Iterable[str], *, regional: Iterable[str] = (), here: str = CENTRAL
    ) -> None:
        self.task, self.here = task, here
        self.regions, self.regional = frozenset(regions), frozenset(regional)
        self._parents: dict[str, str] = {}
        self._seen: dict[Key, _Seen] = {}
        self._members: dict[Key, FleetDevice] = {}
        # From 1, so that whoever has seen nothing (after=0) is answered at once.
        self._view = FleetView(version=1)
        self._is_listed = True
        self._changed = asyncio.Event()
        self._closed = False

    @property
    def view(self) -> FleetView:
        """The present view."""
        # Listed when somebody looks: hundreds of members may say something in between.
        if not self._is_listed:
            devices = tuple(self._members[key] for key in sorted(self._members))
            self._view = self._view.model_copy(update={"devices": devices})
            self._is_listed = True
        return self._view

    def device_state(self, region: str, device: str, state: State | None) -> None:
        """Take in a device's state; None means that its topic was cleared."""
        if region in self.regions:
            self._state((region, device), state)

    def gateway_state(self, region: str, state: State | None) -> None:
        """Take in a gateway's state, with the tier that it stands below; None as above."""
        if state is not None and region in self.regions:
            self._place(region, state.parent or CENTRAL)
        if region in self.regional and region != self.here:
            self._state((region, GATEWAY), state)

    def execution(self, region: str, device: str, execution: Execution | None) -> None:
        """Take in a device's execution of the task; None means that its topic was cleared."""
        if region in self.regions and region not in self.regional - {self.here}:
            self._execution((region, device), execution)

    def gateway_execution(self, region: str, execution: Execution | None) -> None:
        """Take in what a region that aggregates does of the task; None as above."""
        if region in self.regional and region != self.here:
            self._execution((region, GATEWAY), execution)

    def cancel(self) -> None:
        """Note that the task was called off."""
        if not self._view.canceled:
            self._replace(canceled=True)

    def end(self) -> None:
        """Note that the task has ended at the centre."""
        if not self._view.over:
            self._replace(over=True)

    def announced(self, messages: int) -> None:
        """Note the number that grows with every message of the tier above."""
        if messages != self._view.announced:
            self._replace(announced=messages)

    def see(self, *, blind: bool) -> None:
        """Note whether nothing can be heard of the members, because the broker is away."""
        if blind != self._view.blind:
            self._replace(blind=blind)

    async def wait(self, after: int, timeout_s: float) -> FleetView:
        """Return the view once its version is above `after`, or as it is after `timeout_s`."""
        try:
            async with asyncio.timeout(timeout_s):
                while self._view.version <= after and not self._closed:
                    await self._changed.wait()
        except TimeoutError:
            pass
        return self.view

    def close(self) -> None:
        """Answer all who wait, now and later: the service is ending."""
        self._closed = True
        self._changed.set()

    def _place(self, region: str, parent: str) -> None:
        if parent != self._parents.get(region, CENTRAL):
            self._parents[region] = parent
            self._fold(*self._seen)  # whoever is below it may have another tier now

    def _state(self, key: Key, state: State | None) -> None:
        seen = self._seen.setdefault(key, _Seen())
        if state is not None and seen.state is not None and state.boot_id != seen.state.boot_id:
            if seen.online and state.state is Presence.OFFLINE:
                return  # the will of an earlier process of this member
            # A new process whose journal was lost counts its versions from the beginning.
            seen.floor = 0
        seen.state = state
        self._fold(key)

    def _execution(self, key: Key, execution: Execution | None) -> None:
        seen = self._seen.setdefault(key, _Seen())
        if execution is not None and execution.version < seen.floor:
            self._complain(seen, *key, execution.version)
            return
        seen.execution = execution
        seen.floor = 0 if execution is None else execution.version
        self._fold(key)

    def _is_member(self, key: Key) -> bool:
        region, name = key
        if name == GATEWAY and region in self.regional and region != self.here:
            return self._home(self._parents.get(region, CENTRAL)) == self.here
        return self._home(region) == self.here

    def _home(self, tier: str) -> str:
        """Return the nearest tier from `tier` upward that aggregates this task."""
        passed: set[str] = set()
        while tier not in self.regional and tier != CENTRAL and tier not in passed:
            passed.add(tier)
            tier = self._parents.get(tier, CENTRAL)
        return tier if tier in self.regional else CENTRAL

    def _fold(self, *keys: Key) -> None:
        """Take what these have said last into the view; what is as it was makes no new version of it."""
        changed = False
        for key in keys:
            seen = self._seen[key]
            has_part = seen.execution is not None and self._is_member(key)
            member = _device(key, seen) if has_part else None
            if member == self._members.get(key):
                continue
            changed = True
            if member is None:
                del self._members[key]
            else:
                self._members[key] = member
        if changed:
            self._is_listed = False
            self._replace()

    def _replace(self, **changes: Any) -> None:
        self._view = self._view.model_copy(update={"version": self._view.version + 1, **changes})
        self._changed.set()
        if not self._closed:
            self._changed = asyncio.Event()

    def _complain(self, seen: _Seen, region: str, device: str, version: int) -> None:
        log = logger.debug if seen.complained else logger.warning
        seen.complained = True
        log(
            "task=%s device=%s/%s: execution version %d came after %d and is dropped",
            self.task,
            region,
            device,
            version,
            seen.floor,
        )


def _device(key: Key, seen: _Seen) -> FleetDevice:
    execution = seen.execution
    if execution is None:
        raise ValueError(f"device {key} has no execution")
    flower = execution.flower
    return FleetDevice(
        region=key[0],
        device=key[1],
        online=seen.online,
        state=execution.state,
        phase=execution.phase,
        node_id=flower.node_id if flower else None,
        nonce=flower.nonce if flower else None,
        message_id=flower.message_id if flower else None,
        connects=flower.connects if flower else 0,
        samples=execution.samples,
        backend=execution.backend,
        reason=execution.reason,
    )
