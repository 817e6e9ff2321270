"""A device's request headers against Flower's own; the tests of the link show a server that takes them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import cast

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.supercore.error import ApiErrorCode
from flwr.supercore.interceptors.http.runtime_version import RuntimeVersionHttpInterceptor
from flwr.supercore.protobuf.client import ProtobufClientInterceptor, ProtobufRequestContext
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor
from google.protobuf.message import Message

from trellis.flower.device_headers import FLEET_RUN_STATUS_NOT_ALLOWED, DeviceHeaders

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


def test_the_code_of_an_ended_run_is_flowers() -> None:
    assert ApiErrorCode.FLEET_RUN_STATUS_NOT_ALLOWED == FLEET_RUN_STATUS_NOT_ALLOWED


def test_a_device_loads_no_package_that_only_servers_and_operators_use() -> None:
    code = (
        "import sys; import device_agent.service, device_agent.command, trellis.flower.link\n"
        "print([name for name in ('fastapi', 'starlette', 'uvicorn', 'requests', 'sqlalchemy', 'yaml') "
        "if name in sys.modules])"
    )
    command = [sys.executable, "-c", code]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (ran.stdout.strip(), ran.stderr) == ("[]", "")
