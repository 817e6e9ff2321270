"""What a graph's file says of itself, whichever format it has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


class MalformedFile(ValueError):
    """A file that breaks its own format; the message says where and how."""


@dataclass(frozen=True)
class Port:
    """One input or output of a graph.

    Attributes:
        dtype: As numpy calls it.
        shape: Its axes, None for one that is open; None where the file does not say.
    """

    dtype: str
    shape: tuple[int | None, ...] | None


@dataclass(frozen=True)
class Ports:
    """The inputs and outputs of a program, by their names in the file."""

    inputs: Mapping[str, Port]
    outputs: Mapping[str, Port]


@dataclass(frozen=True)
class GraphFile:
    """A file that keeps to its format.

    Attributes:
        manifest: What stands under our key in its metadata, if anything does.
        programs: By name; the name `""` stands for all of them where the format knows one graph.
        strange: What the file asks of a runtime that we do not allow: operators of others, files beside it.
    """

    manifest: bytes | None
    programs: Mapping[str, Ports]
    strange: tuple[str, ...] = field(default=())

    def ports(self, program: str) -> Ports | None:
        """Return the ports of a program, if there is one of that name."""
        return self.programs.get(program, self.programs.get(""))
