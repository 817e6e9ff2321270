"""Averaging in regions changes nothing: the same devices and seeds give the flat federation's model."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
from federation import Device, Federation
from safetensors.numpy import load_file, save_file
from tensors_apart import greatest_difference

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(600)]

TOLERANCE = 1e-5
ROUNDS = 5
# Regions of one and of two devices, with about 720, 240, 145, 360 and 90 samples: no two alike.
DEVICES = (
    Device("d1", "eu-1", partition="0/2"),
    Device("d2", "eu-1", partition="3/6"),
    Device("d3", "eu-2", partition="1/10"),
    Device("d4", "us-1", partition="2/4"),
    Device("d5", "us-1", partition="5/16"),
)
ALL = {"quorum": 1.0, "deadline_s": 120.0}
MEMBERS = {
    "flat": {"eu-1/d1", "eu-1/d2", "eu-2/d3", "us-1/d4", "us-1/d5"},
    "two": {"eu-1/gateway", "eu-2/gateway", "us-1/gateway"},
    "three": {"eu/gateway", "us-1/gateway"},
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fleet(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Federation]:
    folder = tmp_path_factory.mktemp("hierarchy") / "fleet"
    async with Federation(folder, devices=DEVICES, parents={"eu-1": "eu", "eu-2": "eu"}) as started:
        yield started


def aggregation(depth: str) -> dict[str, Any]:
    """Return the section of a task that averages at so many tiers."""
    if depth == "flat":
        return {"tier": "central"}
    country = {"tier": "central"} if depth == "two" else regional(minimum=2)
    regions = {"eu": country, "eu-2": regional(minimum=1)}  # eu-2 has one device alone
    return {"tier": "regional", "participants": ALL | {"minimum": len(MEMBERS[depth])}, "regions": regions}


def regional(minimum: int) -> dict[str, Any]:
    return {"tier": "regional", "participants": ALL | {"minimum": minimum}}


async def trained(fleet: Federation, depth: str, strategy: str) -> Path:
    """Train to the end at this depth, and return the model."""
    task = await fleet.submit(
        f"{strategy}-{depth}",
        model={"name": "mlp"},
        train={"rounds": ROUNDS},
        strategy={"name": strategy},
        aggregation=aggregation(depth),
        participants=ALL | {"minimum": len(DEVICES) if depth == "flat" else 2},
        evaluate={"on": ["server"], "every": ROUNDS},
    )
    view = await fleet.ended(task, within_s=300)
    for record in view["history"]:
        outcomes = {f"{one['region']}/{one['device']}": one["outcome"] for one in record["outcomes"]}
        assert outcomes == dict.fromkeys(MEMBERS[depth], "replied")
        # Five devices' samples, whoever has added them up.
        assert sum(one["samples"] for one in record["outcomes"]) == samples(fleet)
    return await fleet.model(task)


def samples(fleet: Federation) -> int:
    """Return what all devices have together, by their own word."""
    said = [fleet.mqtt.latest[f"{device.path}/info"] for device in DEVICES]
    return sum(info["data"]["samples"] for info in said if info)


@pytest.mark.parametrize("strategy", ["fedavg", pytest.param("fedadam", marks=pytest.mark.long)])
async def test_two_and_three_tiers_give_the_flat_federations_model(fleet: Federation, strategy: str) -> None:
    flat = await trained(fleet, "flat", strategy)
    for depth in ("two", "three"):
        apart = greatest_difference(flat, await trained(fleet, depth, strategy))
        assert apart <= TOLERANCE, f"{depth} tiers: {apart:.1e} of a tensor's greatest magnitude"


async def one_round(fleet: Federation, *regions: str) -> tuple[Path, int]:
    """Return the model of one round of these regions' devices alone, and how many samples they have."""
    task = await fleet.submit(
        "-".join(("alone", *regions)),
        regions=regions,
        model={"name": "mlp"},
        train={"rounds": 1},
        participants={"deadline_s": 120.0},
    )
    (record,) = (await fleet.ended(task))["history"]
    return await fleet.model(task), sum(one["samples"] for one in record["outcomes"])


async def test_what_agrees_is_the_mean_by_samples_and_no_other(fleet: Federation, tmp_path: Path) -> None:
    regions = sorted({device.region for device in DEVICES})
    whole, samples_of_all = await one_round(fleet, *regions)
    models, samples = zip(*[await one_round(fleet, region) for region in regions], strict=True)
    assert sum(samples) == samples_of_all
    means = [load_file(model) for model in models]

    def apart(weights: tuple[int, ...]) -> float:
        mean = {name: np.average([one[name] for one in means], axis=0, weights=weights) for name in means[0]}
        save_file(mean, tmp_path / "mean.safetensors")
        return greatest_difference(whole, tmp_path / "mean.safetensors")

    assert apart(samples) <= TOLERANCE
    assert apart((1,) * len(means)) > 100 * TOLERANCE
