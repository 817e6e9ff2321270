"""What a service and the process that it starts for a ServerApp say to each other, each one line of JSON."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

Scalar = str | int | float | bool


class _Line(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    def to_line(self) -> bytes:
        """Return the line, with its end."""
        return self.model_dump_json().encode() + b"\n"


class Order(_Line):
    """Start a run of an app.

    Attributes:
        address: The SuperLink's, on loopback.
        superlink_pid: The app ends with this process.
        app: The app's folder.
        config: Overrides of keys that stand in its `pyproject.toml`.
    """

    address: str
    superlink_pid: int
    app: str
    config: dict[str, bool | int | float | str]


class Started(_Line):
    """The run that was started, or why there is none."""

    run_id: int | None = None
    problem: str | None = None
