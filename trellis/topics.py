"""MQTT topics: one builder and one parser, inverse of each other.

`Topics("trellis/v1")` renders an `Address` into a topic and parses a topic into an `Address`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from trellis import identifiers
from trellis.errors import ConfigError, PayloadError

DEFAULT_BASE = "trellis/v1"


class Kind(StrEnum):
    """What is said on a topic; the value is its template below the base."""

    CENTRAL_STATE = "central/state"
    CENTRAL_TASK_STATE = "central/tasks/{task}/state"
    CENTRAL_TASK_ROUND = "central/tasks/{task}/round"
    GATEWAY_STATE = "{region}/gateway/state"
    GATEWAY_EXECUTION = "{region}/gateway/tasks/{task}/execution"
    GATEWAY_LOG = "{region}/gateway/tasks/{task}/log"
    DESCRIPTOR = "{region}/tasks/{task}/descriptor"
    TASK_STATUS = "{region}/tasks/{task}/status"
    TASK_ROUND = "{region}/tasks/{task}/round"
    DEVICE_STATE = "{region}/devices/{device}/state"
    DEVICE_INFO = "{region}/devices/{device}/info"
    EXECUTION = "{region}/devices/{device}/tasks/{task}/execution"
    PROGRESS = "{region}/devices/{device}/tasks/{task}/progress"
    LOG = "{region}/devices/{device}/tasks/{task}/log"

    @property
    def fields(self) -> frozenset[str]:
        """The names that the template needs."""
        return frozenset(part[1:-1] for part in self.value.split("/") if part.startswith("{"))


@dataclass(frozen=True)
class Address:
    """A parsed topic: its kind and the names in it, `""` where the kind has none."""

    kind: Kind
    region: str = ""
    device: str = ""
    task: str = ""

    def __post_init__(self) -> None:
        names = {"region": self.region, "device": self.device, "task": self.task}
        for field, value in names.items():
            if field not in self.kind.fields:
                if value:
                    raise PayloadError(f"topic {self.kind.name}", f"has no {field}, got {value!r}")
            elif field == "region":
                identifiers.region(value)
            else:
                identifiers.identifier(value, what=field)


@dataclass(frozen=True)
class Topics:
    """The topics below one base, such as `trellis/v1`."""

    base: str = DEFAULT_BASE

    def __post_init__(self) -> None:
        if not self.base or any(not level or set(level) & set("+#\0$ ") for level in self.base.split("/")):
            raise ConfigError(
                f"topic base {self.base!r}",
                "must be non-empty levels joined by '/', without '+', '#', '$' or blanks, as in 'trellis/v1'",
            )

    def render(self, address: Address) -> str:
        """Return the topic of `address`."""
        names = {"region": address.region, "device": address.device, "task": address.task}
        return f"{self.base}/{address.kind.value.format(**names)}"

    def path(self, kind: Kind, *, region: str = "", device: str = "", task: str = "") -> str:
        """Return the topic of a kind and its names; shorthand for `render(Address(…))`."""
        return self.render(Address(kind, region=region, device=device, task=task))

    def filter(self, kind: Kind, *, region: str = "+", device: str = "+", task: str = "+") -> str:
        """Return the subscription filter of a kind; names left out match every name."""
        return f"{self.base}/{kind.value.format(region=region, device=device, task=task)}"

    def parse(self, topic: str) -> Address:
        """Return the address of `topic`.

        Raises:
            PayloadError: The topic is not one of ours, or a name in it is no identifier.
        """
        prefix = self.base + "/"
        if not topic.startswith(prefix):
            raise PayloadError(f"topic {topic[:200]!r}", f"is not below {self.base!r}")
        levels = topic[len(prefix) :].split("/")
        for kind in Kind:
            names = _match(kind.value.split("/"), levels)
            if names is not None:
                return Address(kind, **names)
        raise PayloadError(f"topic {topic[:200]!r}", "is none of Trellis's topics")


def _match(template: list[str], levels: list[str]) -> dict[str, str] | None:
    if len(template) != len(levels):
        return None
    names: dict[str, str] = {}
    for due, came in zip(template, levels, strict=True):
        if due.startswith("{"):
            names[due[1:-1]] = came
        elif due != came:
            return None
    # `central/…` is the server's: no region is called so, and only its own kinds start with it.
    return None if names.get("region") == identifiers.CENTRAL else names
