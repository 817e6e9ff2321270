"""What a demo leaves behind to be read by machines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trellis.cli.demo.plan import DemoPlan
from trellis.cli.watching.picture import Picture


def summarise(
    plan: DemoPlan,
    task: str,
    view: Mapping[str, Any],
    picture: Picture,
    *,
    accuracy: float,
    seconds: float,
    model: str,
) -> dict[str, Any]:
    """Return the summary; `view` is the server's account of the task, `picture` that of MQTT."""
    history = [
        {
            "round": one.get("round"),
            "loss": one.get("loss"),
            "accuracy": one.get("accuracy"),
            "replied": one.get("replied", 0),
            "devices": sum(map(_devices_in, one.get("outcomes", []))),
            "failed": one.get("failed", 0),
            "duration_s": one.get("duration_s"),
        }
        for one in view.get("history", [])
    ]
    return {
        "accuracy": accuracy,
        "rounds": len(history),
        "seconds": round(seconds, 1),
        "model": model,
        "devices": [_device(device.region, device.name, task, picture) for device in plan.devices],
        "history": history,
    }


def _devices_in(outcome: Mapping[str, Any]) -> int:
    """Return how many devices' updates came with an outcome: a region's own count, or one."""
    if outcome["phase"] != "train" or outcome["outcome"] != "replied":
        return 0
    tally = outcome.get("tally")
    return int(tally["replied"]) if tally else 1


def _device(region: str, name: str, task: str, picture: Picture) -> dict[str, Any]:
    view = picture.devices.get((region, name))
    execution = view.executions.get(task) if view else None
    return {
        "device": name,
        "region": region,
        "state": str(execution.state) if execution else None,
        "samples": execution.samples if execution else None,
        "backend": execution.backend if execution else None,
    }
