"""Turns pydantic's validation errors into our faults: field, what came, what was due."""

from __future__ import annotations

import json

from pydantic import ValidationError

from trellis.errors import Fault

_SHOWN = 120


def faults_of(error: ValidationError) -> list[Fault]:
    """Return every fault of a validation error, each with its dotted field."""
    return [_fault(item["loc"], item["msg"], item["type"], item.get("input")) for item in error.errors()]


def shown(value: object) -> str:
    """Return `value` as it is quoted in a message: short, and as JSON where it can be."""
    try:
        text = json.dumps(value, default=str, ensure_ascii=False)
    except (ValueError, RecursionError):
        text = f"<{type(value).__name__}>"
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"


def _fault(loc: tuple[int | str, ...], message: str, kind: str, value: object) -> Fault:
    field = ".".join(str(part) for part in loc)
    problem = message.removeprefix("Value error, ")
    if kind == "extra_forbidden":
        return Fault(field, "is no field of it", "remove it, or mind its spelling")
    if kind == "missing":
        return Fault(field, "is missing")
    if kind == "json_invalid":
        return Fault(field, problem)
    return Fault(field, f"{problem[:1].lower()}{problem[1:]}, got {shown(value)}")
