"""The service's side of the backchannel (`trellis.flower.backchannel`), for ServerApps on this machine."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Awaitable, Callable
from typing import Annotated

from fastapi import Depends, FastAPI, Header, Query, Response

from trellis.errors import Refused
from trellis.flower.backchannel import Brief, Hello, RoundRecord, StateReport, Uplink
from trellis.http.server import create_app
from trellis.payloads import Log, Round, TaskState
from trellis.tier.running import AppTask, MemberTask

MAX_WAIT_S = 60.0
_DOUBT_S = 1.0
"""An app whose SuperLink dies may take that for a failure of its own, and say so before the service knows."""


def create_backchannel(
    find: Callable[[str], AppTask],
    *,
    token: str,
    outlives: Callable[[float], Awaitable[bool]],
    find_member: Callable[[str], MemberTask] | None = None,
) -> FastAPI:
    """Return the backchannel's app.

    Args:
        find: Returns the task of a name, or raises `Refused`.
        token: What an app must show; it inherits it in its environment.
        outlives: Whether the SuperLink of now still runs in so many seconds.
        find_member: At a gateway, as `find`: its apps are members of the tier above.
    """

    async def authorised(authorization: Annotated[str, Header()] = "") -> None:
        # Bytes: compare_digest refuses a str that is not ASCII.
        if not secrets.compare_digest(authorization.encode(), f"Bearer {token}".encode()):
            raise Refused("token", "the backchannel needs the bearer token that the service handed its app")

    async def beat(name: str) -> None:
        find(name).runs.beat()

    app = create_app("Trellis backchannel")
    guard = [Depends(authorised), Depends(beat)]

    @app.post("/app/{name}/hello", dependencies=guard)
    async def hello(name: str, hello: Hello) -> Brief:
        return find(name).meet(hello)

    @app.get("/app/{name}/fleet", dependencies=guard)
    async def fleet(
        name: str,
        after: int = 0,
        wait_s: Annotated[float, Query(ge=0, le=MAX_WAIT_S)] = 0.0,
    ) -> Response:
        task = find(name)
        view = await task.fleet.wait(after, wait_s)
        task.runs.beat()  # it may have waited long, and asks again from now
        return Response(view.model_dump_json(), media_type="application/json")

    @app.post("/app/{name}/round", dependencies=guard)
    async def announce(name: str, round: Round) -> dict[str, str]:
        await find(name).announce(round)
        return {}

    @app.post("/app/{name}/record", dependencies=guard)
    async def record(name: str, record: RoundRecord) -> dict[str, str]:
        await find(name).finish_round(record)
        return {}

    @app.post("/app/{name}/state", dependencies=guard)
    async def state(name: str, report: StateReport) -> dict[str, str]:
        if report.state is TaskState.FAILED and not await outlives(_DOUBT_S):
            raise Refused(
                "run", f"task {name!r} has not failed: its SuperLink ended, and another run follows"
            )
        await find(name).report(report)
        return {}

    if find_member is not None:

        @app.post("/app/{name}/uplink", dependencies=guard)
        async def uplink(name: str, news: Uplink) -> dict[str, str]:
            await find_member(name).uplink(news)
            return {}

        @app.post("/app/{name}/log", dependencies=guard)
        async def log(name: str, line: Log) -> dict[str, str]:
            # As a line of ours, named by its task: so it stands in our log, and goes where that goes.
            level = logging.getLevelNamesMapping()[line.level]
            logging.getLogger(line.logger).log(level, "task=%s: %s", name, line.message)
            return {}

    return app
