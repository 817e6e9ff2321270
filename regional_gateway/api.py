"""The gateway's HTTP API. State changes only by signed envelopes; the rest is reading.

POST /v1/tasks        a signed envelope → 201 taken, 200 known already
GET  /v1/tasks        GET /v1/tasks/{id}
GET  /v1/tasks/{id}/state                       GET /v1/tasks/{id}/round
GET  /v1/devices      GET /healthz
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from fastapi import Depends, FastAPI, Request, Response
from pydantic import BaseModel, ConfigDict

from regional_gateway.board import at_the_server
from regional_gateway.ledger import TaskRecord
from regional_gateway.place import TierAbove
from regional_gateway.roster import Device
from trellis import __version__
from trellis.envelope import MAX_ENVELOPE_BYTES
from trellis.errors import Refused
from trellis.flower.backchannel import RoundRecord
from trellis.http.readers import require_reader
from trellis.http.server import create_app, read_body
from trellis.payloads import Execution, ExecutionState, Info, Phase, Presence, Reason, TaskState, now_ms
from trellis.tier.on_demand import SuperLinkState

if TYPE_CHECKING:
    from regional_gateway.service import Gateway


_READING = [Depends(require_reader)]


class _View(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PostedView(_View):
    """What became of a posted task."""

    task: str
    revision: int
    desired: Literal["run", "canceled"]
    changed: bool


class TaskView(_View):
    """A task in this region. `elapsed_s` counts from its posting here to its end, or to now.

    `tier` is where its devices' updates are averaged; `round` and `rounds` are the tier's above.
    """

    task: str
    revision: int
    desired: Literal["run", "canceled"]
    tier: Literal["central", "regional"]
    central: TaskState | None
    round: int
    rounds: int
    elapsed_s: float
    executions: dict[ExecutionState, int]
    verdict: Reason | None


class TaskDevice(_View):
    """What one device made of a task."""

    device: str
    execution: Execution


class TaskDetail(TaskView):
    """A task with its devices and the descriptor that was signed.

    Where the region averages, `execution` is its part in the tier above, and `history` its own rounds.
    """

    devices: list[TaskDevice]
    execution: Execution | None
    history: tuple[RoundRecord, ...]
    descriptor: dict[str, Any]


class TaskList(_View):
    """All tasks whose topics stand."""

    tasks: list[TaskView]


class DeviceView(_View):
    """One device. `state` is offline, and `since` null, until it was heard."""

    device: str
    state: Presence
    since: int | None
    info: Info | None
    task: str | None
    phase: Phase | None


class DeviceList(_View):
    """All devices that were ever heard."""

    devices: list[DeviceView]


class Health(_View):
    """How the gateway is: `degraded` while a broker or the SuperLink is away. `ts` is its clock's time, ms.

    `superlink` is `idle` while no task needs it, `starting` until it runs for the first, null where the
    gateway has no front. `front` is its Flower
    front, `host:port`, if it has one; `bridged` says whether the region has a broker of its own; `above` are
    the regions above, the nearest first; null until the gateway has learned of them.
    """

    status: Literal["ok", "degraded"]
    version: str
    ts: int
    region: str
    broker: Literal["connected", "away"]
    parent_broker: Literal["connected", "away"]
    superlink: SuperLinkState | None
    front: str | None
    bridged: bool
    above: tuple[TierAbove, ...] | None
    tasks: int
    devices: int


def create(gateway: Gateway) -> FastAPI:
    """Return the API of a gateway."""
    app = create_app(f"Trellis gateway of {gateway.settings.region}")

    @app.post("/v1/tasks")
    async def post_task(request: Request, response: Response) -> PostedView:
        admission = await gateway.post(await read_body(request, limit_bytes=MAX_ENVELOPE_BYTES))
        response.status_code = 201 if admission.changed else 200
        descriptor = admission.record.descriptor
        return PostedView(
            task=descriptor.task,
            revision=descriptor.revision,
            desired=descriptor.desired,
            changed=admission.changed,
        )

    @app.get("/v1/tasks", dependencies=_READING)
    async def list_tasks() -> TaskList:
        return TaskList(tasks=[_task(gateway, record) for record in gateway.ledger.live()])

    @app.get("/v1/tasks/{task}", dependencies=_READING)
    async def show_task(task: str) -> TaskDetail:
        return _detail(gateway, task)

    @app.get("/v1/tasks/{task}/state", dependencies=_READING)
    async def show_state(task: str) -> Response:
        return Response(_state(gateway, task), media_type="application/json")

    @app.get("/v1/tasks/{task}/round", dependencies=_READING)
    async def show_round(task: str) -> Response:
        return Response(_round(gateway, task), media_type="application/json")

    @app.get("/v1/devices", dependencies=_READING)
    async def list_devices() -> DeviceList:
        return DeviceList(devices=[_device(one) for one in gateway.fleet.roster.devices()])

    @app.get("/healthz")
    async def health() -> Health:
        return _health(gateway)

    return app


def _task(gateway: Gateway, record: TaskRecord) -> TaskView:
    status = gateway.board.status(record)
    return TaskView(
        task=status.task,
        revision=status.revision,
        desired=status.desired,
        tier=record.descriptor.tier_of(gateway.settings.region),
        central=status.central,
        round=gateway.board.round(record.task),
        rounds=record.descriptor.train.rounds,
        elapsed_s=record.elapsed_s(now_ms()),
        executions=status.executions,
        verdict=status.verdict,
    )


def _record(gateway: Gateway, task: str) -> TaskRecord:
    record = gateway.ledger.get(task)
    if record is None or record.cleared:
        raise Refused(
            "unknown", f"task {task[:80]!r} was not posted to the gateway of {gateway.settings.region!r}"
        )
    return record


def _state(gateway: Gateway, task: str) -> bytes:
    record = _record(gateway, task)
    said = at_the_server(gateway.board.status(record))
    if said is None:
        raise Refused("unknown", f"task {record.task!r}: the server has not said anything of it yet")
    return said.to_bytes()


def _round(gateway: Gateway, task: str) -> bytes:
    record = _record(gateway, task)
    standing = gateway.board.standing_round(record.task)
    if standing is None:
        raise Refused("unknown", f"task {record.task!r} has no round yet")
    return standing


def _detail(gateway: Gateway, task: str) -> TaskDetail:
    record = _record(gateway, task)
    tier = gateway.tier if gateway.place.aggregates(record.descriptor) else None
    executions = gateway.fleet.roster.executions(task)
    return TaskDetail(
        **_task(gateway, record).model_dump(),
        execution=tier.part.execution(task) if tier is not None else None,
        history=tier.history(task) if tier is not None else (),
        devices=[TaskDevice(device=name, execution=one) for name, one in executions.items()],
        descriptor=record.descriptor.model_dump(mode="json", exclude_none=True),
    )


def _device(one: Device) -> DeviceView:
    active = one.active
    return DeviceView(
        device=one.name,
        state=one.state.state if one.state else Presence.OFFLINE,
        since=one.state.since if one.state else None,
        info=one.info,
        task=active[0] if active else None,
        phase=active[1].phase if active else None,
    )


def _health(gateway: Gateway) -> Health:
    region, parent = gateway.connections
    superlink = gateway.tier.superlink if gateway.tier is not None else None
    return Health(
        status="ok" if region and parent and superlink != "down" else "degraded",
        version=__version__,
        ts=now_ms(),
        region=gateway.settings.region,
        broker="connected" if region else "away",
        parent_broker="connected" if parent else "away",
        superlink=superlink,
        front=gateway.place.front,
        bridged=gateway.place.bridged,
        above=gateway.place.above if gateway.place.known else None,
        tasks=len(gateway.ledger.live()),
        devices=len(gateway.fleet.roster),
    )
