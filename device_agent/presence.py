"""What a device says of itself: its birth, its will, its certificate of birth."""

from __future__ import annotations

import logging
import platform
from dataclasses import dataclass

import psutil

from device_agent.settings import DeviceSettings
from models.datasets import Dataset
from trellis import __version__
from trellis.errors import Displaced, PayloadError
from trellis.mqtt import Publication
from trellis.payloads import DataInfo, Info, Presence, State, now_ms
from trellis.topics import Kind

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Self:
    """One boot of one device.

    Attributes:
        boot_id: Greater than every earlier boot's of the same journal.
        since: When this boot began, ms.
    """

    settings: DeviceSettings
    info: Info
    boot_id: str
    since: int

    @property
    def state_topic(self) -> str:
        """Where this device says whether it is there."""
        return self._path(Kind.DEVICE_STATE)

    @property
    def will(self) -> Publication:
        """What the broker says for this boot when it is gone."""
        return self._state(Presence.OFFLINE, self.since)

    def births(self) -> tuple[Publication, ...]:
        """Return what is said at every connect: whose state says that it is there has said what it is."""
        info = Publication(self._path(Kind.DEVICE_INFO), self.info.to_bytes(), retain=True)
        return (info, self.birth())

    def birth(self) -> Publication:
        """Return that this boot is there."""
        return self._state(Presence.ONLINE, self.since)

    def goodbye(self) -> Publication:
        """Return that this boot has ended as it should."""
        return self._state(Presence.OFFLINE, now_ms())

    def must_repeat(self, payload: bytes) -> bool:
        """Return whether the birth must be said again after `payload` on the own state topic.

        Raises:
            Displaced: A later process has this device's name: this one is a duplicate's elder and ends.
        """
        if not payload:
            return True
        try:
            state = State.parse(payload)
        except PayloadError as error:
            logger.warning("own state topic: %s", error)
            return True
        if state.boot_id == self.boot_id:
            # The broker may take an old connection of ours for lost after the new one has said its birth.
            return state.state is Presence.OFFLINE
        if state.state is Presence.ONLINE and state.boot_id > self.boot_id:
            raise Displaced(
                f"device {self.settings.name!r} of region {self.settings.region!r}: was started a second "
                f"time (boot {state.boot_id}, this one is {self.boot_id}): this one ends; give each device a "
                "name and a state folder of its own"
            )
        return True

    def _state(self, presence: Presence, since: int) -> Publication:
        state = State(state=presence, boot_id=self.boot_id, since=since)
        return Publication(self.state_topic, state.to_bytes(), retain=True)

    def _path(self, kind: Kind) -> str:
        return self.settings.topics.path(kind, region=self.settings.region, device=self.settings.name)


def describe(dataset: Dataset, backends: tuple[str, ...], backend: str) -> Info:
    """Return the birth certificate of this machine and its data; of the data only their measure."""
    data = DataInfo(name=dataset.name, samples=len(dataset), shape=dataset.shape, classes=dataset.classes)
    return Info(
        version=__version__,
        python=platform.python_version(),
        platform=platform.system().lower(),
        machine=platform.machine(),
        cpus=psutil.cpu_count() or 1,
        memory_mb=psutil.virtual_memory().total // 2**20,
        backends=backends,
        backend=backend,
        data=data,
    )
