"""Who can hold a certificate, what it is called, and in which folder it lies."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import PurePosixPath

from trellis.errors import ConfigError
from trellis.identifiers import identifier
from trellis.identifiers import region as region_name

# RFC 5280, appendix A.1: ub-common-name.
MAX_COMMON_NAME = 64


class Role(StrEnum):
    """What a principal is to the fleet."""

    SERVER = "server"
    BROKER = "broker"
    OPERATOR = "operator"
    GATEWAY = "gateway"
    DEVICE = "device"


@dataclass(frozen=True)
class Principal:
    """One holder of a certificate.

    Attributes:
        role: What it is.
        common_name: Its certificate's CN, which a broker takes as its user name: where it owns topics, the
            levels below the base under which it publishes.
        folder: Where its files lie below the folder of all keys.
    """

    role: Role
    common_name: str
    folder: PurePosixPath

    def __post_init__(self) -> None:
        if len(self.common_name) > MAX_COMMON_NAME:
            raise ConfigError(
                f"certificate for {self.common_name!r}",
                f"its name has {len(self.common_name)} characters, X.509 allows {MAX_COMMON_NAME}: "
                f"shorten the {self.role} or its region",
            )

    @property
    def region(self) -> str:
        """The region that it belongs to; empty where it belongs to none."""
        return self.folder.parts[1] if self.role in (Role.GATEWAY, Role.DEVICE) else ""

    @property
    def listens(self) -> bool:
        """Whether others connect to it, so that its certificate names hosts."""
        return self.role in (Role.SERVER, Role.BROKER, Role.GATEWAY)


SERVER = Principal(Role.SERVER, "central/server", PurePosixPath("server"))
BROKER = Principal(Role.BROKER, "broker", PurePosixPath("broker"))
OPERATOR = Principal(Role.OPERATOR, "operator", PurePosixPath("operator"))


def gateway(region: str) -> Principal:
    """Return the gateway of a region.

    Raises:
        PayloadError: The region's name is none.
    """
    return Principal(Role.GATEWAY, f"{region_name(region)}/gateway", PurePosixPath("gateways", region))


def device(region: str, name: str) -> Principal:
    """Return a device of a region.

    Raises:
        PayloadError: The region's or the device's name is none.
        ConfigError: Both together are longer than a certificate's name may be.
    """
    common_name = f"{region_name(region)}/devices/{identifier(name, what='device')}"
    return Principal(Role.DEVICE, common_name, PurePosixPath("devices", region, name))


def named(common_name: str) -> Principal:
    """Return the principal whose certificate bears this name.

    Raises:
        InvalidInput: It is no principal's name.
    """
    for principal in (SERVER, BROKER, OPERATOR):
        if principal.common_name == common_name:
            return principal
    match common_name.split("/"):
        case [region, "gateway"]:
            return gateway(region)
        case [region, "devices", name]:
            return device(region, name)
        case _:
            raise ConfigError(
                f"certificate for {common_name!r}", "names no server, gateway, device or operator"
            )
