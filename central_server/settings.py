"""What the central server is told at its start: read once by its command, then passed down as a value."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

from models.datasets import parse_source
from trellis.envelope import Keyring
from trellis.errors import ConfigError, DataError, Fault
from trellis.tier.supervision import RunTiming
from trellis.tls import TlsFiles
from trellis.topics import Topics

_MOST_KEEP_HOURS = 10 * 365 * 24
FLOWER_APP = Path(__file__).parent / "flower_app"


@dataclass(frozen=True)
class Timing(RunTiming):
    """How long the service waits for what, beside its apps.

    Attributes:
        broker_s: For the broker at the start.
        retention_s: Until the topics of an ended task are cleared.
    """

    broker_s: float = 5.0
    retention_s: float = 24 * 3600.0

    @classmethod
    def keeping(cls, hours: float) -> Self:
        """Return the usual timing, with the topics of an ended task kept for so many hours.

        Raises:
            ConfigError: No time, or no end of it.
        """
        if not 0 <= hours <= _MOST_KEEP_HOURS:  # NaN is refused by this, too
            raise ConfigError("option keep-hours", f"{hours:g} must be 0 to {_MOST_KEEP_HOURS}")
        return cls(retention_s=hours * 3600.0)


@dataclass(frozen=True)
class ServerSettings:
    """The central server's settings.

    Attributes:
        keyring: The operators whose tasks it takes.
        tls: Its certificate; None only on loopback.
        runs: The folder that holds one folder per task.
        data: Sources of its own evaluation data by the data set's name.
        task: A signed task to start at once, as the bytes of its envelope.
    """

    broker_url: str
    keyring: Keyring
    tls: TlsFiles | None
    host: str = "127.0.0.1"
    front_port: int = 8000
    api_port: int = 8080
    runs: Path = Path("runs")
    data: Mapping[str, str] = field(default_factory=dict)
    topics: Topics = field(default_factory=Topics)
    task: bytes | None = None
    app: Path = FLOWER_APP
    timing: Timing = field(default_factory=Timing)


def data_sources(sources: Iterable[str]) -> dict[str, str]:
    """Return the sources (see `models.datasets.load`) by data set name, with absolute paths.

    Raises:
        ConfigError: A path is not there, or two sources have one name; every fault is named.
    """
    found: dict[str, str] = {}
    faults: list[Fault] = []
    for text in sources:
        try:
            source = parse_source(text)
        except DataError as error:
            faults.append(Fault("data", str(error)))
            continue
        if source.path is not None and not source.path.exists():
            faults.append(
                Fault("data", f"{text!r}: {source.path} is not there", "give digits, PATH or NAME=PATH")
            )
        elif source.name in found:
            faults.append(
                Fault("data", f"{text!r} and {found[source.name]!r} are both {source.name!r}", "NAME=PATH")
            )
        else:
            path = None if source.path is None else source.path.resolve()
            found[source.name] = str(replace(source, path=path))
    if faults:
        raise ConfigError("options", faults)
    return found
