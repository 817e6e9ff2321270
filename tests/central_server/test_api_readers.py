"""What the server's API shows to whom."""

from __future__ import annotations

from typing import Any, cast

from fastapi.routing import APIRoute

from central_server.api import create_api
from trellis.http.readers import require_reader


def test_all_reading_but_the_health_is_for_operator_server_and_gateways() -> None:
    nothing = cast(Any, None)  # asked only when a request comes
    reading = [
        route
        for route in create_api(nothing, nothing, nothing).routes
        if isinstance(route, APIRoute) and "GET" in (route.methods or ())
    ]
    open_to_all = [
        route.path
        for route in reading
        if require_reader not in [one.call for one in route.dependant.dependencies]
    ]
    assert open_to_all == ["/healthz"]
    assert len(reading) == 8
