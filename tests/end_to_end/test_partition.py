"""A region that the centre cannot reach for a while: no end is told, and connections are half open."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from machines import until
from namespaces import Network, network
from secure_federation import SecureFleet

pytestmark = pytest.mark.timeout(400)

ROUNDS = 5
STEADY = {"rounds": ROUNDS, "local_epochs": 150}
"""Rounds of a second or two: long enough to be in one when the cable is pulled, and enough of them."""


@pytest.fixture(scope="module")
def ends() -> Iterator[Network]:
    with network() as found:
        yield found


@pytest.fixture(scope="module")
def fleet(ends: Network, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureFleet]:
    with SecureFleet(tmp_path_factory.mktemp("partition"), ends) as started:
        yield started


def view(fleet: SecureFleet, task: str) -> dict[str, Any]:
    with fleet.operator_http() as http:
        return dict(http.get(f"{fleet.server_url}/v1/tasks/{task}").json())


def in_training(fleet: SecureFleet, task: str) -> bool:
    found = view(fleet, task)
    return len(found.get("history", ())) >= 1 and "training" in {one["phase"] for one in found["devices"]}


# Gateway and devices are at the edge: gone for less than the broker's patience of 30 s, and for longer.
@pytest.mark.long
@pytest.mark.parametrize("away_s", [12.0, 45.0])
def test_a_task_finishes_after_a_partition_has_healed(fleet: SecureFleet, away_s: float) -> None:
    task = f"parted-{away_s:g}"
    file = fleet.task_file(fleet.task(task, train=STEADY))
    where = ("--server", fleet.server_url, "--broker", fleet.broker_url)
    posted = fleet.operator("task", "run", file, *where, "--no-watch")
    assert posted.code == 0, posted.err
    until(lambda: in_training(fleet, task), "a device trains in a later round")
    with fleet.network.cut():
        time.sleep(away_s)
        assert view(fleet, task)["state"] == "running"
    healed = time.monotonic()
    done = until(
        lambda: (found := view(fleet, task))["state"] != "running" and found, "the end", within_s=150
    )
    print(f"done {time.monotonic() - healed:.1f} s after a partition of {away_s:g} s")
    print([one["duration_s"] for one in done["history"]])
    until(lambda: view(fleet, task)["state"] == "succeeded", "the task has succeeded")
    assert [one["replied"] for one in done["history"]] == [2] * ROUNDS
    for device in ("d1", "d2"):
        until(
            lambda device=device: fleet.execution(task, device).get("state") == "SUCCEEDED",
            f"{device} knows of the end",
        )
