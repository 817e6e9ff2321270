"""TrellisGrid with Flower's own strategies, unmodified, on a real SuperLink with real links."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
from flower_fleet import Device, adding, fleet_of
from flower_parts import scripted_app

from trellis.flower.backchannel import FleetDevice
from trellis.flower.superlink import SuperLink
from trellis.payloads import ExecutionState

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(180)]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def superlink(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[SuperLink]:
    async with SuperLink(folder=tmp_path_factory.mktemp("superlink")) as running:
        yield running


async def run(
    superlink: SuperLink,
    folder: Path,
    devices: list[Device],
    name: str,
    on_answer: Callable[[], None] = lambda: None,
    **options: Any,
) -> dict[str, Any]:
    defaults = {"params": {}, "rounds": 1, "fold": False, "quorum": 1.0, "deadline_s": 80.0}
    with fleet_of(devices, superlink.address, folder) as fleet:
        async with scripted_app(superlink, folder) as app:
            command = defaults | {"devices": len(devices), "view": str(fleet.path), "name": name} | options
            try:
                return await app("strategy", **command)
            finally:
                on_answer()


HONEST = [Device("a", 100, adding(1.0)), Device("b", 300, adding(2.0))]


@pytest.mark.parametrize("fold", [False, True])
async def test_fedavg_weighs_by_examples(superlink: SuperLink, tmp_path: Path, fold: bool) -> None:
    result = await run(superlink, tmp_path, HONEST, "FedAvg", rounds=2, fold=fold)
    # (100 * 1 + 300 * 2) / 400 = 1.75 a round, from zero, two rounds.
    assert result["arrays"] == {"w": [3.5] * 4, "b": [[3.5, 3.5], [3.5, 3.5]]}
    assert result["metrics"]["1"]["train_loss"] == pytest.approx(1.0)


async def test_devices_that_take_messages_inline_and_stock_ones_share_a_round(
    superlink: SuperLink, tmp_path: Path
) -> None:
    devices = [Device("a", 100, adding(1.0)), Device("b", 300, adding(2.0), stock=True)]
    result = await run(superlink, tmp_path, devices, "FedAvg", rounds=2)
    assert result["arrays"]["w"] == [3.5] * 4
    inline, stock = (device.calls[device.calls.index("query") + 1 :] for device in devices)
    # Its root object alone goes up, once the reply is there; nothing comes down but the message.
    assert "PullObject" not in inline
    assert inline.count("PushObject") in {4, 5}, inline  # query, 2 × train, 2 × evaluate; the last may be cut
    # Each of four messages as a parcel is three objects; the query's reply has three, an evaluation's, too.
    assert stock.count("PullObject") == 12
    assert stock.count("PushObject") == 15


async def test_krum_runs_unchanged_and_drops_the_outlier(superlink: SuperLink, tmp_path: Path) -> None:
    devices = [Device(n, 10, adding(v)) for n, v in zip("abcd", (1.0, 1.0, 1.0, 1000.0), strict=True)]
    result = await run(superlink, tmp_path, devices, "Krum", params={"num_malicious_nodes": 1})
    assert result["arrays"]["w"] == [1.0] * 4


async def test_qfedavg_runs_unchanged(superlink: SuperLink, tmp_path: Path) -> None:
    params = {"client_learning_rate": 0.1, "q": 0.0}
    result = await run(superlink, tmp_path, HONEST, "QFedAvg", params=params)
    # With q = 0 every device counts the same (Li et al. 2020, q-FedAvg, step 6): (1 + 2) / 2.
    np.testing.assert_allclose(result["arrays"]["w"], [1.5] * 4, rtol=1e-6)


async def test_a_lost_device_does_not_hold_up_a_round_that_has_its_quorum(
    superlink: SuperLink, tmp_path: Path
) -> None:
    devices = [*HONEST, Device("c", 100, adding(9.0), vanishes=True)]
    # Nobody waits for an app for as long as this deadline is: see `ScriptedApp`.
    result = await run(superlink, tmp_path, devices, "FedAvg", quorum=0.5, deadline_s=600.0)
    assert result["arrays"]["w"] == [1.75] * 4


async def test_updates_that_do_not_fit_are_dropped_and_named(superlink: SuperLink, tmp_path: Path) -> None:
    devices = [
        *HONEST,
        Device("nan", 50, adding(float("nan"))),
        Device("shape", 50, lambda arrays: {**arrays, "w": np.zeros(5, np.float32)}),
        Device("dtype", 50, lambda arrays: {**arrays, "w": arrays["w"].astype(np.float64)}),
        Device("error", 50, adding(0.0), raises="loss is NaN at step 7"),
    ]
    result = await run(superlink, tmp_path, devices, "FedAvg", quorum=0.3)
    assert result["arrays"]["w"] == [1.75] * 4
    view = {o["device"]: o for o in result["train_outcomes"]}
    assert {name: o["outcome"] for name, o in view.items()} == {
        "a": "replied",
        "b": "replied",
        "nan": "failed",
        "shape": "failed",
        "dtype": "failed",
        "error": "failed",
    }
    assert "tensor 'w' holds NaN or infinity" in view["nan"]["reason"]
    assert "tensor 'w' has shape (5,), the round's model has (4,)" in view["shape"]["reason"]
    assert "tensor 'w' has dtype float64, the round's model has float32" in view["dtype"]["reason"]
    assert view["error"]["reason"] == "loss is NaN at step 7"


async def test_a_deadline_closes_the_phase(superlink: SuperLink, tmp_path: Path) -> None:
    over = threading.Event()

    def slow(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        over.wait(120)  # longer than the phase: a straggler
        return arrays

    devices = [*HONEST, Device("slow", 10, slow)]
    # The others answer within a second, on an idle machine; there is one phase, to be waited for once.
    training = {"params": {"fraction_evaluate": 0.0}, "deadline_s": 10.0, "quorum": 0.5}
    result = await run(superlink, tmp_path, devices, "FedAvg", on_answer=over.set, **training)
    assert result["arrays"]["w"] == [1.75] * 4
    assert {o["device"]: o["outcome"] for o in result["train_outcomes"]}["slow"] == "late"


async def test_a_reply_that_is_never_whole_does_not_outlast_the_deadline(
    superlink: SuperLink, tmp_path: Path
) -> None:
    devices = [*HONEST, Device("half", 10, adding(9.0), uploads_half=True)]
    started = time.monotonic()
    result = await run(superlink, tmp_path, devices, "FedAvg", quorum=0.5, deadline_s=10.0)
    assert result["arrays"]["w"] == [1.75] * 4
    assert {o["device"]: o["outcome"] for o in result["train_outcomes"]}["half"] == "late"
    assert time.monotonic() - started < 150, "Flower itself would wait for two hours"


async def test_replies_that_differ_in_their_metrics_cost_nobody_the_round(
    superlink: SuperLink, tmp_path: Path
) -> None:
    devices = [*HONEST, Device("other", 400, adding(3.0), more={"f1": 0.5})]
    result = await run(superlink, tmp_path, devices, "FedAvg", fold=False)
    # (100*1 + 300*2 + 400*3) / 800
    assert result["arrays"]["w"] == [2.375] * 4
    assert set(result["metrics"]["1"]) == {"train_loss"}


async def test_a_device_that_stands_by_replaces_a_lost_one(superlink: SuperLink, tmp_path: Path) -> None:
    devices = [*HONEST, Device("c", 100, adding(5.0), vanishes=True), Device("d", 400, adding(3.0))]
    result = await run(
        superlink,
        tmp_path,
        devices,
        "FedAvg",
        quorum=1.0,
        deadline_s=80.0,
        shown=["eu-1/a", "eu-1/b", "eu-1/c"],
    )
    # c is gone and d stands in: (100*1 + 300*2 + 400*3) / 800 = 2.375
    assert result["arrays"]["w"] == [2.375] * 4


async def test_two_claims_on_one_node_let_in_only_the_one_that_the_node_confirms(
    superlink: SuperLink, tmp_path: Path
) -> None:
    with fleet_of(HONEST, superlink.address, tmp_path) as fleet:
        async with asyncio.timeout(60):
            while fleet.devices["a"].node_id is None:  # noqa: ASYNC110 - threads fill it
                await asyncio.sleep(0.02)
        with fleet.lock:
            fleet.devices["thief"] = FleetDevice(
                region="us-1",
                device="thief",
                online=True,
                state=ExecutionState.IN_PROGRESS,
                node_id=fleet.devices["a"].node_id,
            )
            fleet.write()
        async with scripted_app(superlink, tmp_path) as app:
            found = await app("members", view=str(fleet.path), devices=2, settle_s=3.0)
    assert found["members"] == ["eu-1/a", "eu-1/b"]
