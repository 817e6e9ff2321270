"""The server's HTTP API: operators and gateways ask and post here."""

from __future__ import annotations

import asyncio
import json
import logging
from collections import Counter
from typing import Annotated, Any, Protocol

from fastapi import Depends, FastAPI, Query, Request, Response
from fastapi.responses import FileResponse, JSONResponse

from central_server.listening import Gateways
from central_server.logbook import Level, Wanted, newest
from central_server.store import MODEL
from central_server.task import ServerTask
from central_server.tasks import Tasks
from central_server.views import task_view
from trellis import __version__
from trellis.envelope import MAX_ENVELOPE_BYTES
from trellis.errors import Refused, Unavailable
from trellis.flower.backchannel import RoundRecord
from trellis.http.readers import require_reader
from trellis.http.server import create_app, read_body
from trellis.payloads import now_ms

logger = logging.getLogger(__name__)

_READING = [Depends(require_reader)]
_OVERLAP_MS = 1000
"""Lines are written in batches: so much is asked for twice, and nothing is missed."""


class Health(Protocol):
    """What `GET /healthz` asks of the service."""

    @property
    def broker_connected(self) -> bool: ...

    @property
    def superlink_alive(self) -> bool: ...


def create_api(tasks: Tasks, gateways: Gateways, health: Health) -> FastAPI:
    """Return the API's app."""
    app = create_app("Trellis central server")

    @app.post("/v1/tasks")
    async def post_task(request: Request) -> Response:
        body = await read_body(request, limit_bytes=MAX_ENVELOPE_BYTES)
        task, new = await tasks.post(body)
        return JSONResponse(_brief(task), status_code=201 if new else 200)

    @app.post("/v1/tasks/{name}/cancel")
    async def cancel_task(name: str, request: Request) -> Response:
        body = await read_body(request, limit_bytes=MAX_ENVELOPE_BYTES)
        return JSONResponse(_brief(await tasks.cancel(name, body)))

    @app.get("/v1/tasks", dependencies=_READING)
    async def list_tasks() -> Response:
        views = [task_view(task, await _last_round(task)).model_dump(mode="json") for task in tasks]
        return JSONResponse({"tasks": views})

    @app.get("/v1/tasks/{name}", dependencies=_READING)
    async def show_task(name: str) -> Response:
        task = tasks.find(name)
        history = await task.history()
        return _json(await asyncio.to_thread(task_view(task, history).model_dump_json))

    @app.get("/v1/tasks/{name}/state", dependencies=_READING)
    async def show_state(name: str) -> Response:
        # For those who ask again and again: the whole grows with rounds times devices.
        return _json(tasks.find(name).record.public().to_bytes())

    @app.get("/v1/tasks/{name}/round", dependencies=_READING)
    async def show_round(name: str) -> Response:
        return _json((await tasks.find(name).standing()).to_bytes())

    @app.get("/v1/tasks/{name}/model", dependencies=_READING)
    async def get_model(name: str) -> Response:
        return _model(tasks.find(name))

    _add_logs(app, tasks)
    _add_surroundings(app, tasks, gateways, health)
    return app


def _add_logs(app: FastAPI, tasks: Tasks) -> None:
    @app.get("/v1/tasks/{name}/logs", dependencies=_READING)
    async def show_logs(
        name: str,
        *,
        device: str | None = None,
        region: str | None = None,
        level: Level = "DEBUG",
        after: Annotated[int, Query(ge=0)] = 0,
        limit: Annotated[int, Query(ge=1, le=10_000)] = 1000,
    ) -> Response:
        wanted = Wanted(device=device, region=region, level=level, after=after)
        return _json(await asyncio.to_thread(_logs, tasks.find(name), wanted, limit))


def _add_surroundings(app: FastAPI, tasks: Tasks, gateways: Gateways, health: Health) -> None:
    @app.get("/v1/gateways", dependencies=_READING)
    async def list_gateways() -> Response:
        found = [
            {"region": region, "state": state.state, "api": state.api}
            for region, state in gateways.states.items()
        ]
        return JSONResponse({"gateways": found})

    @app.get("/healthz")
    async def show_health() -> Response:
        well = health.broker_connected and health.superlink_alive
        return JSONResponse(
            {
                "status": "ok" if well else "degraded",
                "version": __version__,
                "ts": now_ms(),
                "broker": "connected" if health.broker_connected else "disconnected",
                "superlink": "running" if health.superlink_alive else "down",
                "tasks": dict(Counter(str(task.record.state) for task in tasks)),
            }
        )


def _brief(task: ServerTask) -> dict[str, Any]:
    return {"task": task.name, "revision": task.record.revision, "state": task.record.state}


async def _last_round(task: ServerTask) -> list[RoundRecord]:
    try:
        last = await task.last_round()
    except Unavailable as error:  # the list must not end at one task's file
        logger.error("task=%s: listed without its last round: %s", task.name, error)
        return []
    return [] if last is None else [last]


def _logs(task: ServerTask, wanted: Wanted, limit: int) -> str:
    cursor = max(now_ms() - _OVERLAP_MS, 0)
    lines = newest(task.folder, wanted, limit)
    return json.dumps(
        {
            "task": task.name,
            "state": task.record.state,
            "cursor": cursor,
            "lines": [line.model_dump(mode="json", exclude_none=True) for line in lines],
        },
        ensure_ascii=False,
    )


def _json(text: str | bytes) -> Response:
    return Response(text, media_type="application/json")


def _model(task: ServerTask) -> Response:
    path = task.folder / MODEL
    if not path.is_file():
        raise Refused(
            "unknown",
            f"task {task.name!r} has no model yet: it is {task.record.state}, round {task.record.round} of "
            f"{task.record.rounds}",
        )
    return FileResponse(path, media_type="application/octet-stream", filename=f"{task.name}.safetensors")
