"""What a service and the Flower app that it started say to each other, over loopback HTTP.

The app inherits the address and a bearer token in its environment (never through run-config, which Flower
stores). The service is the only one that publishes on MQTT; the app reports to it and learns from it which
devices are there.

    POST /app/{task}/hello    Hello       → Brief
    GET  /app/{task}/fleet    ?after&wait_s → FleetView     (long poll: answers once version > after)
    POST /app/{task}/round    payloads.Round
    POST /app/{task}/record   RoundRecord
    POST /app/{task}/state    StateReport
    POST /app/{task}/uplink   Uplink        (a region's app alone: how it fares as a member of the tier above)
    POST /app/{task}/log      payloads.Log  (a region's app alone: what it logs)
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from trellis.identifiers import Identifier, RegionName
from trellis.payloads import ExecutionState, Phase, Reason, TaskState

URL_VARIABLE = "TRELLIS_BACKCHANNEL"
TOKEN_VARIABLE = "TRELLIS_BACKCHANNEL_TOKEN"  # noqa: S105 - the name of a variable, not a secret

Count = Annotated[int, Field(ge=0)]
Number = Annotated[float, Field(allow_inf_nan=False)]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Hello(_Model):
    """The app's first word: its process, so that the service sees it die, and its Flower run."""

    pid: int
    run_id: int


class Above(_Model):
    """How a region's app reaches the tier above, as a Flower client.

    Attributes:
        address: `host:port` of that tier's front.
        folder: Where its node key, node ID and unanswered messages live, from run to run.
        ca, cert, key: The gateway's PEM files; None without TLS.
    """

    address: str
    folder: str
    ca: str | None = None
    cert: str | None = None
    key: str | None = None


class Brief(_Model):
    """What the app is to do.

    Attributes:
        descriptor: The task descriptor's JSON text, verified by the service.
        folder: Where the app writes checkpoints and, at the centre, the model.
        data: Source of the server's own evaluation data (`digits`, a path, `name=path`), if it has any.
        region: The region whose tier this is; None at the centre.
        above: The tier that a region's app is a client of.
    """

    descriptor: str
    folder: str
    data: str | None = None
    region: RegionName | None = None
    above: Above | None = None


GATEWAY = "gateway"
"""A region that aggregates is a member of the tier above under this name: `eu-1/gateway`."""


class FleetDevice(_Model):
    """One member of a tier, as its topics show it: a device, or the gateway of a region that aggregates.

    Attributes:
        online: What its state topic says; false after its last will.
        node_id: The Flower node that its execution claims.
        nonce: The nonce that its execution shows: it proves the claim.
        message_id: The message whose reply it has uploaded.
        connects: How often its node has connected with no message in hand.
    """

    region: RegionName
    device: Identifier
    online: bool
    state: ExecutionState | None = None
    phase: Phase | None = None
    node_id: int | None = None
    nonce: str | None = None
    message_id: str | None = None
    connects: Count = 0
    samples: int | None = None
    backend: str | None = None
    reason: Reason | None = None

    @property
    def name(self) -> str:
        """`region/device`: unique in a federation."""
        return f"{self.region}/{self.device}"


class FleetView(_Model):
    """All members that have an execution of the task, and what became of it elsewhere.

    Attributes:
        canceled: Whether it was called off.
        over: Whether it has ended at the centre: a region's app is needed no more.
        announced: Grows with every message that the tier above sends: a region's app pulls when it has.
        blind: Whether the service's broker is away: the members are old news, and no upload is announced.
    """

    version: Count
    blind: bool = False
    canceled: bool = False
    over: bool = False
    announced: Count = 0
    devices: tuple[FleetDevice, ...] = ()

    @property
    def why_over(self) -> str:
        """Why nothing more is to be done."""
        return "the task was called off" if self.canceled else "the task has ended at the centre"


class Tally(_Model):
    """How many of a region's members took part in its last round, and what became of the others."""

    selected: Count = 0
    replied: Count = 0
    failed: Count = 0
    standby: Count = 0


class Outcome(_Model):
    """What became of one member's part in a round.

    Attributes:
        outcome: `replied`: its update counts. `failed`: it could not, or sent what does not fit. `lost`: it
            went away. `late`: it was there, and silent at the deadline. `superseded`: another was faster.
    """

    region: RegionName
    device: Identifier
    phase: Literal["train", "evaluate"]
    outcome: Literal["replied", "failed", "lost", "late", "superseded"]
    reason: str | None = None
    samples: int | None = None
    loss: Number | None = None
    duration_s: float | None = None
    tally: Tally | None = None


class RoundRecord(_Model):
    """One finished round, for the HTTP API and `metrics.jsonl`.

    Attributes:
        failed: Devices that failed or were lost in training.
        standby: Devices that had checked in and were not selected.
    """

    round: Count
    loss: Number | None = None
    accuracy: Number | None = None
    metrics: dict[str, Number] = Field(default_factory=dict)
    selected: int = 0
    replied: int = 0
    failed: int = 0
    standby: int = 0
    outcomes: tuple[Outcome, ...] = ()
    duration_s: float = 0.0
    bytes_up: Count = 0
    bytes_down: Count = 0


class StateReport(_Model):
    """The task's state changed."""

    state: TaskState
    reason: Reason | None = None
    metrics: dict[str, Number] = Field(default_factory=dict)


class Uplink(_Model):
    """A region's app has news of its part in the tier above, of which its gateway says an execution.

    Attributes:
        event: What happened; each names what it needs of the rest.
        node_id: `connected`, `checked-in`: its Flower node there.
        nonce: `checked-in`: what proves that.
        in_hand: `connected`: the messages that it has, and has not answered.
        message_id: `replying`, `replied`: the message answered.
        kind: `replied`: query, train or evaluate.
        round: `training`, `evaluating`: of the tier above.
        reason: `connecting`, `replied`: what went wrong, if anything did.
    """

    event: Literal[
        "connecting", "connected", "checked-in", "asked", "training", "evaluating", "replying", "replied"
    ]
    node_id: int | None = None
    nonce: str | None = None
    in_hand: tuple[str, ...] = ()
    message_id: str | None = None
    kind: Literal["query", "train", "evaluate"] | None = None
    round: Count | None = None
    reason: Reason | None = None
