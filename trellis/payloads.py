"""MQTT payloads: UTF-8 JSON with `schema` and `ts` (milliseconds since 1970, UTC).

Every payload is a frozen model with `to_bytes()` and `parse()`, inverse of each other. Unknown fields are
ignored, so that an older device understands a newer gateway. The descriptor's payload is a signed
envelope: `trellis.envelope`.
"""

from __future__ import annotations

import time
from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from trellis.errors import PayloadError
from trellis.faults import faults_of
from trellis.identifiers import Identifier

SCHEMA = 1
MAX_PAYLOAD_BYTES = 256 * 1024

Count = Annotated[int, Field(ge=0, le=2**53)]
Moment = Annotated[int, Field(ge=0, le=253_402_214_400_000)]
"""Milliseconds since 1970, UTC, to the last day of the year 9999: a calendar has it in every time zone."""
NodeId = Annotated[int, Field(ge=0, lt=2**64)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Text = Annotated[str, AfterValidator(lambda text: text.encode("utf-8", "replace").decode())]
"""Free text. File names and tracebacks may hold lone surrogates, which UTF-8 cannot: `?` in their place."""
Number = Annotated[float, Field(allow_inf_nan=False)]


def now_ms() -> int:
    """Return the time in milliseconds since 1970, UTC."""
    return time.time_ns() // 1_000_000


class Part(BaseModel):
    """A piece of a payload."""

    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True)


class Payload(Part):
    """What all payloads share."""

    schema_version: Literal[1] = Field(default=1, alias="schema")
    ts: Moment = Field(default_factory=now_ms)

    def to_bytes(self) -> bytes:
        """Return the payload as UTF-8 JSON; fields that are None are left out."""
        return self.model_dump_json(by_alias=True, exclude_none=True).encode()

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Return the payload in `data`.

        Raises:
            PayloadError: It is too large, not UTF-8 JSON, or breaks the schema; every fault is named.
        """
        if len(data) > MAX_PAYLOAD_BYTES:
            raise PayloadError(
                f"{cls.__name__} payload", f"has {len(data)} bytes, at most {MAX_PAYLOAD_BYTES}"
            )
        try:
            return cls.model_validate_json(data)
        except ValidationError as error:
            raise PayloadError(f"{cls.__name__} payload", faults_of(error)) from None


class Presence(StrEnum):
    """Whether a process is connected; `offline` is also its last will."""

    ONLINE = "online"
    OFFLINE = "offline"


class State(Payload):
    """`…/state` of the server, a gateway or a device (retained; its `offline` is the last will).

    Attributes:
        boot_id: Drawn anew at every start, so that an old will is told from the present process.
        since: When this state began, ms.
        api: URL of the HTTP API (server and gateways).
        parent: Name of the tier above a gateway.
    """

    state: Presence
    boot_id: Text = Field(min_length=1, max_length=64)
    since: Moment
    api: Text | None = None
    parent: Text | None = None


class DataInfo(Part):
    """What a device says of its own data: never the data."""

    name: Text
    samples: Count
    shape: tuple[int, ...]
    classes: Count


class Info(Payload):
    """`…/devices/<device>/info`: a device's birth certificate and what it can do (retained).

    Attributes:
        backends: The training backends that are installed.
        backend: The one that it trains with.
    """

    version: Text
    python: Text
    platform: Text
    machine: Text
    cpus: Count
    memory_mb: Count
    backends: tuple[Text, ...]
    backend: Text | None = None
    data: DataInfo | None = None


class ExecutionState(StrEnum):
    """The states of a task on one device (those of AWS IoT Jobs)."""

    QUEUED = "QUEUED"
    IN_PROGRESS = "IN_PROGRESS"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    REJECTED = "REJECTED"
    TIMED_OUT = "TIMED_OUT"
    CANCELED = "CANCELED"

    @property
    def ended(self) -> bool:
        """Whether nothing follows this state."""
        return self not in {ExecutionState.QUEUED, ExecutionState.IN_PROGRESS}


class Phase(StrEnum):
    """What a device in progress is doing.

    `asked`: a message to train on, or to evaluate, is on its way to it, or waits until the processor is free.
    """

    VERIFYING = "verifying"
    FETCHING = "fetching"
    CONNECTING = "connecting"
    WAITING = "waiting"
    ASKED = "asked"
    TRAINING = "training"
    UPLOADED = "uploaded"
    EVALUATING = "evaluating"


class Reason(Part):
    """Why: a short stable word for machines, and a sentence for people."""

    code: Text
    message: Text


class FlowerLinkage(Part):
    """Which Flower node a device is.

    Attributes:
        nonce: What the server's query message handed to that node: it proves that node and device are one.
        message_id: The reply that is uploaded and may be pulled (the ID of the message it answers).
        connects: How often the node has connected with no message in hand: what was sent to it before then
            and is not answered never reached it. A SuperLink hands a message out once, be it into a void.
    """

    node_id: NodeId
    nonce: Text | None = None
    message_id: Text | None = None
    connects: Count = 0


class Execution(Payload):
    """`…/tasks/<task>/execution`: one task on one device (retained).

    Attributes:
        version: Grows by one with every change of this execution; an older one that arrives late is dropped.
        attempt: How many times the device has begun the task.
        revision: The descriptor's revision that the device acts on.
    """

    state: ExecutionState
    phase: Phase | None = None
    attempt: Count = 1
    version: Count = 0
    revision: Count = 0
    reason: Reason | None = None
    round: Count | None = None
    flower: FlowerLinkage | None = None
    samples: Count | None = None
    backend: Text | None = None


class Progress(Payload):
    """`…/tasks/<task>/progress`: at most one a second, QoS 0."""

    round: Count
    epoch: Count
    epochs: Count
    step: Count
    steps: Count
    loss: Number | None = None
    samples: Count
    eta_s: Seconds


class Log(Payload):
    """`…/tasks/<task>/log` of a device or a gateway: one line or traceback, at most ten a second, QoS 0."""

    level: Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"]
    logger: Text
    message: Text


class RoundPhase(StrEnum):
    """What the federation is doing in a round."""

    GATHERING = "gathering"
    TRAIN = "train"
    AGGREGATE = "aggregate"
    EVALUATE = "evaluate"
    DONE = "done"


class Round(Payload):
    """`…/tasks/<task>/round`: where the rounds stand (retained). A hint to pull, never an instruction.

    Attributes:
        announced: Grows with every Flower message sent in this task; a device pulls when it has.
        lost: Devices of this round that went away.
        standby: Devices checked in that wait as replacements.
        metrics: Weighted means over the devices, and the server's own evaluation as `server_…`.
        bytes_up: Tensor bytes from devices to the server in this round.
        bytes_down: Tensor bytes from the server to devices in this round.
    """

    round: Count
    rounds: Count
    phase: RoundPhase
    announced: Count = 0
    selected: Count = 0
    replied: Count = 0
    failed: Count = 0
    lost: Count = 0
    standby: Count = 0
    loss: Number | None = None
    metrics: dict[Text, Number] = Field(default_factory=dict)
    duration_s: Seconds | None = None
    bytes_up: Count = 0
    bytes_down: Count = 0


class TaskState(StrEnum):
    """A task's life at the server."""

    POSTED = "posted"
    GATHERING = "gathering"
    RUNNING = "running"
    FINISHING = "finishing"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"

    @property
    def ended(self) -> bool:
        """Whether nothing follows this state."""
        return self in {TaskState.SUCCEEDED, TaskState.FAILED, TaskState.CANCELED}


class CentralTask(Payload):
    """`central/tasks/<task>/state` (retained)."""

    task: Identifier
    revision: Count
    state: TaskState
    since: Moment
    round: Count = 0
    rounds: Count
    reason: Reason | None = None
    metrics: dict[Text, Number] = Field(default_factory=dict)


class TaskStatus(Payload):
    """`<region>/tasks/<task>/status` (retained): what became of a task in a region.

    Attributes:
        central: The task's state at the server, as far as the gateway knows it.
        executions: How many of the region's devices are in each execution state.
        verdict: What the gateway last refused about this task, if anything.
    """

    task: Identifier
    revision: Count
    desired: Literal["run", "canceled"]
    central: TaskState | None = None
    executions: dict[ExecutionState, Count] = Field(default_factory=dict)
    verdict: Reason | None = None
