"""The process of one ServerApp, started before there is a run for it: meanwhile it imports what it needs.

`flwr run`, the SuperExec that looks for new runs, and `flwr-serverapp` are three processes that import Flower
one after the other, before a line of the app runs. This one does what they do: it starts the run, takes it as
a SuperExec would, and becomes its `flwr-serverapp`. Everything of Flower that is not public and starts an app
is used in this file alone, behind the contract tests in `tests/contract/test_superlink.py`.

    python -P -m trellis.flower.app_start MODULE…     modules to import beforehand

It reads one `Order` as a line of JSON from its standard input and writes one `Started` to its standard
output; what the app writes goes to its standard error. Without an order, at the input's end, it ends.
"""

from __future__ import annotations

import gc
import hashlib
import importlib
import os
import sys
import time
from pathlib import Path

from flwr.cli.build import build_fab_from_disk
from flwr.common.serde import fab_to_proto, user_config_to_proto
from flwr.proto.control_pb2 import StartRunRequest
from flwr.proto.runtime_pb2 import AcquireTaskRequest, AcquireTaskResponse
from flwr.supercore.constant import TaskType
from flwr.supercore.control.control_http_client import ControlHttpClient
from flwr.supercore.fab import Fab
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.superlink.cli.flwr_serverapp import flwr_serverapp

from trellis.flower.orders import Order, Started

_TAKE_S = 10.0


def main() -> None:
    """Run the app of the order that comes."""
    for module in sys.argv[1:]:
        importlib.import_module(module)
    # Some of Flower's strategies collect garbage with every reply that they open: a tenth of a second each
    # time, and nearly all of it for what was imported.
    gc.collect()
    gc.freeze()
    with os.fdopen(os.dup(1), "wb") as answers:
        os.dup2(2, 1)
        line = sys.stdin.buffer.readline()
        if not line:
            return
        order = Order.model_validate_json(line)
        try:
            run_id = _start(order)
            token = _take(order.address, run_id)
        except Exception as error:  # noqa: BLE001 - whatever it is, who ordered it must hear it
            answers.write(Started(problem=f"{type(error).__name__}: {error}"[:500]).to_line())
            return
        answers.write(Started(run_id=run_id).to_line())
    sys.argv = [
        "flwr-serverapp",
        *("--runtime-api-address", order.address, "--insecure"),  # loopback only
        *("--token", token),
        *("--parent-pid", str(order.superlink_pid)),
    ]
    flwr_serverapp()


def _start(order: Order) -> int:
    """Start the run, as `flwr run` does."""
    content = build_fab_from_disk(Path(order.app))
    fab = Fab(hashlib.sha256(content).hexdigest(), content, {})
    client = ControlHttpClient.from_server_address(
        order.address,
        insecure=True,
        root_certificates=None,
        interceptors=[RuntimeVersionHttpInterceptor(component_name="flwr CLI")],
    )
    try:
        request = StartRunRequest(fab=fab_to_proto(fab), override_config=user_config_to_proto(order.config))
        response = client.StartRun(request)
    finally:
        client.close()
    if not response.HasField("run_id"):
        raise RuntimeError("the SuperLink took no run")
    return int(response.run_id)


def _take(address: str, run_id: int) -> str:
    """Take the run, as a SuperExec does, and return the token of its app."""
    client = RuntimeHttpClient.from_server_address(
        address,
        insecure=True,
        root_certificates=None,
        interceptors=[RuntimeVersionHttpInterceptor(component_name="SuperExec")],
    )
    request = AcquireTaskRequest(supported_task_types=[TaskType.SERVER_APP])
    until = time.monotonic() + _TAKE_S
    try:
        while time.monotonic() < until:
            response: AcquireTaskResponse = client.AcquireTask(request)
            # Runs of before that were never taken have nobody to report to.
            if response.token and response.task.run_id == run_id:
                return str(response.token)
            time.sleep(0.02)
    finally:
        client.close()
    raise TimeoutError(f"the SuperLink hands out no task of run {run_id}")


if __name__ == "__main__":
    main()
