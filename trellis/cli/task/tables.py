"""Tables of what the HTTP APIs answer, as plain text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from trellis.durations import in_words
from trellis.foreign_text import harmless_line

Row = Mapping[str, Any]


def columns(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return rows of cells as aligned text below a header."""
    cells = [
        list(header),
        *([("" if cell is None else harmless_line(str(cell))) for cell in row] for row in rows),
    ]
    widths = [max(len(line[index]) for line in cells) for index in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in cells
    )


def tasks(found: Sequence[Row]) -> str:
    """Return a table of the server's tasks or a gateway's, or a sentence if there are none."""
    if not found:
        return "no tasks"
    return columns(("TASK", "REVISION", "STATE", "ROUND", "DEVICES", "ELAPSED", "REASON"), map(_task, found))


def task(view: Row) -> str:
    """Return one task with its rounds and devices, of the server's or a gateway's answer."""
    parts = [_heading(view)]
    history = view.get("history") or []
    if history:
        parts.append(
            columns(("ROUND", "LOSS", "ACCURACY", "REPLIED", "FAILED", "SECONDS"), map(_round, history))
        )
    members = view.get("devices") or []
    if members:
        parts.append(
            columns(
                ("DEVICE", "STATE", "PHASE", "BACKEND", "SAMPLES", "REASON"),
                (_execution(one) for one in members),
            )
        )
    return "\n\n".join(parts)


def devices(found: Sequence[Row]) -> str:
    """Return a table of a region's devices, or a sentence if there are none."""
    if not found:
        return "no devices"
    header = ("DEVICE", "STATE", "TASK", "PHASE", "BACKEND", "DATA", "SAMPLES")
    return columns(header, (_device(one) for one in found))


def reason_text(reason: object) -> str:
    """Return a reason's sentence, `""` if there is none."""
    if isinstance(reason, Mapping):
        reason = reason.get("message") or reason.get("code")
    # Several faults are a list below one another elsewhere; here they share a line.
    what, *faults = str(reason or "").split("\n  - ")
    return f"{what}: {'; '.join(faults)}" if faults else what


def _heading(view: Row) -> str:
    pairs = [
        ("task", view.get("task")),
        ("revision", view.get("revision")),
        ("state", view.get("state") or view.get("desired")),
        ("round", f"{view.get('round', 0)} of {view['rounds']}" if "rounds" in view else None),
        ("reason", reason_text(view.get("reason") or view.get("verdict"))),
        *((name, f"{value:.4f}") for name, value in sorted((view.get("metrics") or {}).items())),
    ]
    return "\n".join(
        f"{harmless_line(name) + ':':<18} {harmless_line(str(value))}"
        for name, value in pairs
        if value not in (None, "")
    )


def _round(one: Row) -> tuple[object, ...]:
    return (
        one.get("round"),
        _number(one.get("loss"), ".4f"),
        _number(one.get("accuracy"), ".2%"),
        f"{one.get('replied', 0)} of {one.get('selected', 0)}",
        one.get("failed", 0),
        _number(one.get("duration_s"), ".1f"),
    )


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _execution(one: Row) -> tuple[object, ...]:
    # The server gives a device flat, a gateway with its execution beside its name.
    execution: Row = one.get("execution") or one
    name = f"{one['region']}/{one['device']}" if one.get("region") else one.get("device")
    return (
        name,
        execution.get("state"),
        execution.get("phase"),
        execution.get("backend"),
        execution.get("samples"),
        reason_text(execution.get("reason")),
    )


def _device(one: Row) -> tuple[object, ...]:
    info: Row = one.get("info") or {}
    held: Row = info.get("data") or {}
    return (
        one.get("device"),
        one.get("state"),
        one.get("task"),
        one.get("phase"),
        info.get("backend") or ", ".join(info.get("backends") or ()),
        held.get("name"),
        held.get("samples"),
    )


def _task(one: Row) -> tuple[object, ...]:
    # A gateway knows what was asked for, and the centre's state once it has heard of it.
    return (
        one["task"],
        one.get("revision"),
        one.get("state") or one.get("central") or one.get("desired"),
        f"{one.get('round', 0)} of {one.get('rounds', '?')}",
        _members(one),
        "" if (elapsed := one.get("elapsed_s")) is None else in_words(elapsed),
        reason_text(one.get("reason") or one.get("verdict")),
    )


def _members(one: Row) -> str:
    """Return how many devices have the task, and how many of them will not do it."""
    executions: Mapping[str, int] = one.get("executions") or Counter(
        device["state"] for device in one.get("devices") or () if device.get("state")
    )
    refused = ((state, executions.get(state, 0)) for state in ("REJECTED", "FAILED", "TIMED_OUT"))
    said = [f"{count} {state.lower().replace('_', ' ')}" for state, count in refused if count]
    return ", ".join([str(sum(executions.values())), *said])
