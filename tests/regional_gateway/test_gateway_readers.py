"""What a gateway's API shows to whom."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from fastapi.routing import APIRoute

from regional_gateway import api
from trellis.http.readers import require_reader


def test_all_reading_but_the_health_is_for_operator_server_and_gateways() -> None:
    gateway = cast(Any, SimpleNamespace(settings=SimpleNamespace(region="eu-1")))
    reading = [
        route
        for route in api.create(gateway).routes
        if isinstance(route, APIRoute) and "GET" in (route.methods or ())
    ]
    open_to_all = [
        route.path
        for route in reading
        if require_reader not in [one.call for one in route.dependant.dependencies]
    ]
    assert open_to_all == ["/healthz"]
    assert len(reading) == 6
