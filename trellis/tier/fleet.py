"""A task's devices as their topics show them, folded into views whose version grows with real changes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from dataclasses import dataclass, field

from trellis.flower.backchannel import FleetDevice, FleetView
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
    """The devices of one task's regions.

    Feed it states and executions in any order and as often as they come: it is idempotent. Waiters are
    woken once the version has grown, or at once by `close`.
    """

    def __init__(self, task: str, regions: Iterable[str]) -> None:
        self.task = task
        self.regions = frozenset(regions)
        self._seen: dict[Key, _Seen] = {}
        # From 1, so that whoever has seen nothing (after=0) is answered at once.
        self._view = FleetView(version=1)
        self._changed = asyncio.Event()
        self._closed = False

    @property
    def view(self) -> FleetView:
        """The present view."""
        return self._view

    def device_state(self, region: str, device: str, state: State | None) -> None:
        """Take in a device's state; None means that its topic was cleared."""
        if region not in self.regions:
            return
        seen = self._seen.setdefault((region, device), _Seen())
        if state is not None and seen.state is not None and state.boot_id != seen.state.boot_id:
            if seen.online and state.state is Presence.OFFLINE:
                return  # the will of an earlier process of this device
            # A new process whose journal was lost counts its versions from the beginning.
            seen.floor = 0
        seen.state = state
        self._fold()

    def execution(self, region: str, device: str, execution: Execution | None) -> None:
        """Take in a device's execution of the task; None means that its topic was cleared."""
        if region not in self.regions:
            return
        seen = self._seen.setdefault((region, device), _Seen())
        if execution is not None and execution.version < seen.floor:
            self._complain(seen, region, device, execution.version)
            return
        seen.execution = execution
        seen.floor = 0 if execution is None else execution.version
        self._fold()

    def cancel(self) -> None:
        """Note that the task was called off."""
        if not self._view.canceled:
            self._replace(self._view.devices, canceled=True)

    async def wait(self, after: int, timeout_s: float) -> FleetView:
        """Return the view once its version is above `after`, or as it is after `timeout_s`."""
        try:
            async with asyncio.timeout(timeout_s):
                while self._view.version <= after and not self._closed:
                    await self._changed.wait()
        except TimeoutError:
            pass
        return self._view

    def close(self) -> None:
        """Answer all who wait, now and later: the service is ending."""
        self._closed = True
        self._changed.set()

    def _fold(self) -> None:
        devices = tuple(
            _device(key, seen) for key, seen in sorted(self._seen.items()) if seen.execution is not None
        )
        if devices != self._view.devices:
            self._replace(devices, canceled=self._view.canceled)

    def _replace(self, devices: tuple[FleetDevice, ...], *, canceled: bool) -> None:
        self._view = FleetView(version=self._view.version + 1, canceled=canceled, devices=devices)
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
        samples=execution.samples,
        reason=execution.reason,
    )
