"""A device's request headers against Flower's own; the tests of the link show a server that takes them."""

from __future__ import annotations

import subprocess
import sys
from base64 import b64decode
from datetime import datetime, timedelta
from pathlib import Path
from typing import cast

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.common.constant import SYSTEM_TIME_TOLERANCE, TIMESTAMP_HEADER, TIMESTAMP_TOLERANCE
from flwr.supercore.constant import FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.error import ApiErrorCode
from flwr.supercore.interceptors.http.runtime_version import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import verify_signature
from flwr.supercore.protobuf.client import ProtobufClientInterceptor, ProtobufRequestContext
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor
from google.protobuf.message import Message

from trellis.flower.device_headers import (
    CLOCK_AHEAD_S,
    CLOCK_BEHIND_S,
    FLEET_RUN_STATUS_NOT_ALLOWED,
    DeviceHeaders,
    clock_ahead_s,
)

ROOT = Path(__file__).parents[2]


def headers_of(*interceptors: ProtobufClientInterceptor) -> dict[str, str]:
    request = httpx.Request("POST", "http://127.0.0.1/v1/fleet/pull-messages")
    context = ProtobufRequestContext("PullMessages", cast(Message, None), request)
    for interceptor in interceptors:
        interceptor.intercept(context, lambda _: httpx.Response(200, request=request))
    return dict(request.headers)


def test_the_headers_are_those_of_flowers_own_interceptors() -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    ours = headers_of(DeviceHeaders(key))
    flowers = headers_of(
        RuntimeVersionHttpInterceptor(component_name="SuperNode"),
        NodeAuthHttpInterceptor(key, key.public_key()),
    )
    # The time differs, and so would two signatures of the same bytes.
    changing = {name for name in flowers if "timestamp" in name or "signature" in name}
    assert len(changing) == 2
    assert ours.keys() == flowers.keys()
    assert {name: ours[name] for name in ours.keys() - changing} == {
        name: flowers[name] for name in flowers.keys() - changing
    }
    said, due = (datetime.fromisoformat(one[TIMESTAMP_HEADER]) for one in (ours, flowers))
    assert abs(due - said) < timedelta(minutes=5), "another time zone, or another unit"
    signature = b64decode(ours[FLEET_HTTP_SIGNATURE_HEADER])
    assert verify_signature(key.public_key(), ours[TIMESTAMP_HEADER].encode(), signature)


def test_a_request_is_sent_on_once_it_is_signed_and_its_answer_comes_back() -> None:
    request = httpx.Request("POST", "http://127.0.0.1/v1/fleet/pull-messages")
    context = ProtobufRequestContext("PullMessages", cast(Message, None), request)
    answer = httpx.Response(200, request=request)
    sent: list[bool] = []

    def send(given: ProtobufRequestContext) -> httpx.Response:
        sent.append(FLEET_HTTP_SIGNATURE_HEADER in given.request.headers)
        return answer

    signing = DeviceHeaders(ec.generate_private_key(ec.SECP256R1()))
    assert signing.intercept(context, send) is answer
    assert sent == [True]


def test_the_code_of_an_ended_run_is_flowers() -> None:
    assert ApiErrorCode.FLEET_RUN_STATUS_NOT_ALLOWED == FLEET_RUN_STATUS_NOT_ALLOWED


def test_the_clocks_that_are_taken_are_those_that_flower_takes() -> None:
    assert SYSTEM_TIME_TOLERANCE == CLOCK_AHEAD_S
    assert TIMESTAMP_TOLERANCE + SYSTEM_TIME_TOLERANCE == CLOCK_BEHIND_S


@pytest.mark.parametrize("date", [None, "", "yesterday", "Sun, 22 Nov 2026 16:00:00 -0000"])
def test_a_server_that_does_not_say_its_time_says_nothing_of_a_clock(date: str | None) -> None:
    request = httpx.Request(
        "POST", "http://127.0.0.1/", headers={TIMESTAMP_HEADER: "2026-11-22T16:00:09+00:00"}
    )
    assert clock_ahead_s(httpx.Response(401, request=request, headers={"date": date} if date else {})) is None
    said = {"date": "Sun, 22 Nov 2026 16:00:00 GMT"}
    assert clock_ahead_s(httpx.Response(401, request=request, headers=said)) == 9.0


def test_a_device_loads_no_package_that_only_servers_and_operators_use() -> None:
    servers = ("fastapi", "starlette", "uvicorn", "requests", "sqlalchemy", "yaml", "pygments")
    flowers = ("grpc", "flwr.server", "flwr.serverapp", "flwr.supercore.grpc")
    code = (
        "import sys; from trellis.flower.deferred import defer_unused; defer_unused()\n"
        "import device_agent.service, device_agent.command, trellis.flower.link\n"
        f"print([name for name in {servers + flowers!r} if name in sys.modules])"
    )
    command = [sys.executable, "-c", code]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110, check=False)
    assert (ran.stdout.strip(), ran.stderr) == ("[]", "")
