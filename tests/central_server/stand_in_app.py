"""Stands in for a ServerApp: `stand_in_app.py PART TASK RUN_ID` speaks the backchannel as PART says.

silent     never says hello                     dies       says hello and dies by SIGKILL
works      three rounds, then succeeded         one-round  one round, then dies by SIGKILL
obeys      ends as canceled once called off     deaf       says hello and sleeps, whatever comes
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import urllib.request
from typing import Any

PART, TASK, RUN_ID = sys.argv[1], sys.argv[2], int(sys.argv[3])
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def call(method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    request = urllib.request.Request(  # noqa: S310 - our own service on loopback
        f"{os.environ['TRELLIS_BACKCHANNEL']}/app/{TASK}/{path}",
        method=method,
        data=None if body is None else json.dumps(body).encode(),
        headers={
            "authorization": f"Bearer {os.environ['TRELLIS_BACKCHANNEL_TOKEN']}",
            "content-type": "application/json",
        },
    )
    with OPENER.open(request, timeout=30) as response:
        answer: dict[str, Any] = json.load(response)
        return answer


def do_round(number: int) -> None:
    call("POST", "round", {"round": number, "rounds": 3, "phase": "train", "announced": number})
    outcome = {"region": "eu-1", "device": "cam-1", "phase": "train", "outcome": "replied", "samples": 10}
    call(
        "POST",
        "record",
        {"round": number, "loss": 1 / number, "accuracy": 0.3 * number, "selected": 1, "replied": 1}
        | {"outcomes": [outcome], "duration_s": 0.01},
    )


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    if PART == "silent":
        time.sleep(60)
    brief = call("POST", "hello", {"pid": os.getpid(), "run_id": RUN_ID})
    if PART == "dies":
        die()
    if PART == "deaf":
        time.sleep(60)
    call("POST", "state", {"state": "gathering"})
    if PART == "obeys":
        version = 0
        while not (view := call("GET", f"fleet?after={version}&wait_s=1"))["canceled"]:
            version = view["version"]
        call("POST", "state", {"state": "canceled", "reason": {"code": "canceled", "message": "called off"}})
        return
    call("POST", "state", {"state": "running"})
    do_round(1)
    if PART == "one-round":
        die()
    do_round(2)
    do_round(3)
    with open(f"{brief['folder']}/model.safetensors", "wb") as file:
        file.write(b"a model")
    call("POST", "state", {"state": "succeeded", "metrics": {"accuracy": 0.97}})


main()
