"""docs/operations.md against the services' APIs, ports and exit codes."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any, cast

import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute
from pages import codes, read, rows, section

from central_server.api import create_api
from regional_gateway import api as gateway_api
from trellis.cli.broker import PLAIN_PORT, TLS_PORT
from trellis.cli.edge import INTERRUPTED
from trellis.cli.root import every_command
from trellis.errors import Displaced, InvalidInput, MissingExtra, Refused, Unavailable
from trellis.http.errors import status_of
from trellis.payloads import TaskState

PAGE = read("docs/operations.md")


def routes(app: FastAPI) -> list[str]:
    # FastAPI adds its own, for the OpenAPI document.
    return [
        f"{method} {route.path}"
        for route in app.routes
        if isinstance(route, APIRoute)
        for method in route.methods or ()
    ]


def answers(whose: str) -> list[str]:
    (part,) = re.findall(rf"^(\| {whose} \|.*?\n)\n", section(PAGE, "HTTP"), re.MULTILINE | re.DOTALL)
    return [route for row in rows(part) for route in codes(row[0])]


def test_the_servers_calls_are_all_described() -> None:
    nothing = cast(Any, None)  # asked only when a request comes
    assert sorted(answers("Server")) == sorted(routes(create_api(nothing, nothing, nothing)))


def test_a_gateways_calls_are_all_described() -> None:
    gateway = cast(Any, SimpleNamespace(settings=SimpleNamespace(region="eu-1")))
    assert sorted(answers("Gateway")) == sorted(routes(gateway_api.create(gateway)))


def test_a_tasks_states_are_all_described() -> None:
    listed = [codes(row[0])[0] for row in rows(section(PAGE, "A task's life"))]
    assert listed == [state.value for state in TaskState]


@pytest.mark.parametrize(
    ("row", "command", "option"),
    [(1, "server", "front_port"), (2, "server", "api_port"), (3, "gateway", "api_port")],
)
def test_the_ports_are_the_defaults(row: int, command: str, option: str) -> None:
    port, _, named = rows(section(PAGE, "Ports"))[row]
    (found,) = [one for one in every_command()[command].params if one.name == option]
    assert (int(port), codes(named)) == (found.default, found.opts)


def test_the_brokers_ports_are_the_defaults() -> None:
    assert rows(section(PAGE, "Ports"))[0][0] == f"{PLAIN_PORT}, with TLS {TLS_PORT}"


def test_the_exit_codes_are_the_codes() -> None:
    listed = [int(row[0]) for row in rows(section(PAGE, "Exit codes"))]
    errors = (Unavailable("x"), InvalidInput("x"), Displaced("x"))
    assert listed == [0, *(error.exit_code for error in errors), INTERRUPTED]
    assert MissingExtra("x", "y").exit_code == InvalidInput.exit_code


def test_the_statuses_are_the_codes() -> None:
    text = section(PAGE, "HTTP")
    for error, said in [
        (InvalidInput("x"), "{} (mend the input)"),
        (Refused("untrusted", "x"), "{} (a rule said no)"),
        (Refused("revision", "x"), "{} (`revision`, `conflict`)"),
        (Refused("conflict", "x"), "{} (`revision`, `conflict`)"),
        (Refused("unknown", "x"), "{}\n(unknown)"),
        (Unavailable("x"), "{} (try again)"),
    ]:
        assert said.format(status_of(error)) in text
