"""Tells what changed from one picture to the next in plain lines, for pipes and log files; pure."""

from __future__ import annotations

from collections.abc import Iterator

from trellis.cli.watching.metrics import accuracy_of
from trellis.cli.watching.picture import Picture, TaskPicture, TierPicture
from trellis.foreign_text import harmless_line
from trellis.payloads import ExecutionState, Round, State

_TOLD = {
    ExecutionState.REJECTED: "does not take part",
    ExecutionState.FAILED: "failed",
    ExecutionState.TIMED_OUT: "timed out",
    ExecutionState.CANCELED: "stopped",
}


def narrate(before: Picture, after: Picture, *, task: str | None = None) -> list[str]:
    """Return the lines that tell the difference; none if nothing that people follow has changed."""
    lines = [*_presence("server", before.server, after.server)]
    for region, state in after.gateways.items():
        lines += _presence(f"gateway {region}", before.gateways.get(region), state)
    for (region, device), view in after.devices.items():
        known = before.devices.get((region, device))
        if known is view:
            continue
        who = f"device {region}/{device}"
        lines += _presence(who, known.state if known else None, view.state)
        for name, execution in view.executions.items():
            past = known.executions.get(name) if known else None
            if task in (None, name) and (past is None or past.state is not execution.state):
                told = _TOLD.get(execution.state)
                why = f": {execution.reason.message}" if execution.reason else ""
                if told:
                    lines.append(f"{who} {told}{why}")
    for name, one in after.tasks.items():
        if task in (None, name):
            lines += _task(name, before.tasks.get(name, TaskPicture()), one)
    fresh = [line for line in after.logs if line not in before.logs and task in (None, line.task)]
    lines += [f"{line.level.lower()} {line.region}/{line.device}: {line.brief}" for line in fresh]
    return [harmless_line(line) for line in lines]


def round_line(one: Round) -> str:
    """Return a finished round in one line."""
    accuracy = accuracy_of(one.metrics)
    parts = [
        "" if one.loss is None else f"loss {one.loss:.4f}",
        "" if accuracy is None else f"accuracy {accuracy:.2%}",
        f"{one.replied} of {one.selected} replied",
        f"{one.failed} failed" if one.failed else "",
        f"{one.lost} lost" if one.lost else "",
        "" if one.duration_s is None else f"{one.duration_s:.1f} s",
    ]
    return f"round {one.round} of {one.rounds}: {', '.join(part for part in parts if part)}"


def _presence(who: str, before: State | None, after: State | None) -> Iterator[str]:
    if after and (before is None or before.state is not after.state):
        yield f"{who} is {after.state}"


def _task(name: str, before: TaskPicture, after: TaskPicture) -> Iterator[str]:
    for number in sorted(set(after.done) - set(before.done)):
        yield f"{name}: {round_line(after.done[number])}"
    for region, tier in after.regional.items():
        known = before.tiers.get(region, TierPicture())
        for number in sorted(set(tier.done) - set(known.done)):
            yield f"{name}: {region}: {round_line(tier.done[number])}"
        reason = tier.execution.reason if tier.execution else None
        if reason and (known.execution is None or known.execution.reason != reason):
            yield f"{name}: {region}: {reason.message}"
    was = (before.central.state, before.central.reason) if before.central else (None, None)
    now = (after.central.state, after.central.reason) if after.central else was
    if after.central and now != was and (now[0] is not was[0] or now[1] is not None):
        why = f": {after.central.reason.message}" if after.central.reason else ""
        yield f"{name}: {after.central.state}{why}"
    for region, status in after.statuses.items():
        past = before.statuses.get(region)
        if status.verdict and (past is None or past.verdict != status.verdict):
            yield f"{name}: gateway {region} says: {status.verdict.message}"
