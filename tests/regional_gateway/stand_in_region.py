"""Stands in for a region's app: `stand_in_region.py PART TASK RUN_ID` speaks the backchannel as PART says.

waits      as `answers`, after it has said for whom it waits until the first message from above
answers    a regional round for each message from above, until the task is over or called off
trains     begins to train for the first message from above, and does not come to its end
dies       says hello and dies by SIGKILL
raises     says hello, logs a traceback and ends
fails      says that the region's task has failed
crashes    begins a reply to the tier above and dies by SIGKILL
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


def call(method: str, path: str, **body: Any) -> dict[str, Any]:
    request = urllib.request.Request(  # noqa: S310 - our own service on loopback
        f"{os.environ['TRELLIS_BACKCHANNEL']}/app/{TASK}/{path}",
        method=method,
        data=json.dumps(body).encode() if body else None,
        headers={
            "authorization": f"Bearer {os.environ['TRELLIS_BACKCHANNEL_TOKEN']}",
            "content-type": "application/json",
        },
    )
    with OPENER.open(request, timeout=30) as response:
        answer: dict[str, Any] = json.load(response)
        return answer


def uplink(event: str, **more: Any) -> None:
    call("POST", "uplink", event=event, **more)


def answer(number: int) -> None:
    uplink("asked")
    uplink("training", round=number)
    call("POST", "round", round=number, rounds=3, phase="train", announced=number)
    outcome = {"region": "eu-1", "device": "cam-1", "phase": "train", "outcome": "replied", "samples": 10}
    call("POST", "record", round=number, loss=0.5, selected=1, replied=1, outcomes=[outcome], duration_s=0.01)
    uplink("replying", message_id=f"m{number}")
    uplink("replied", message_id=f"m{number}", kind="train")


def main() -> None:
    brief = call("POST", "hello", pid=os.getpid(), run_id=RUN_ID)
    with open(f"{brief['folder']}/brief.json", "w", encoding="utf-8") as file:
        json.dump(brief, file)
    if PART == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    if PART == "raises":
        message = "the region's app ends\nTraceback (most recent call last):\nOSError: no such file"
        call("POST", "log", schema=1, ts=1, level="ERROR", logger="regional_gateway.app", message=message)
        return
    if PART == "fails":
        reason = {"code": "failed", "message": "not enough devices"}
        call("POST", "state", state="failed", reason=reason)
        return
    uplink("connected", node_id=7)
    uplink("checked-in", node_id=7, nonce="n")
    if PART == "crashes":
        uplink("replying", message_id="m1")
        os.kill(os.getpid(), signal.SIGKILL)
    if PART == "waits":
        call("POST", "state", state="gathering", reason={"code": "waiting", "message": "1 of 2 is here"})
    version = done = 0
    while not ((view := call("GET", f"fleet?after={version}&wait_s=5"))["over"] or view["canceled"]):
        version = view["version"]
        while done < view["announced"]:
            done += 1
            if PART == "trains":
                uplink("training", round=done)
                time.sleep(60)
            call("POST", "state", state="running")
            answer(done)


main()
