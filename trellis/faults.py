"""Turns pydantic's validation errors into our faults: field, what came, what was due."""

from __future__ import annotations

import json

from pydantic import ValidationError

from trellis.errors import Fault

RULE = "rule"
"""The type of a fault that one of our own rules found: its message is whole, its remedy in the context."""

_SHOWN = 120
MOST_FAULTS = 100
"""Nobody reads more, and garbage of 128 KB can hold tens of thousands."""


def faults_of(error: ValidationError) -> list[Fault]:
    """Return the faults of a validation error, each with its dotted field; beyond 100 only how many more."""
    items = error.errors()
    faults = [
        _fault(
            item["loc"], item["msg"], item["type"], item.get("input"), item.get("ctx", {}).get("remedy", "")
        )
        for item in items[:MOST_FAULTS]
    ]
    if len(items) > MOST_FAULTS:
        faults.append(Fault("", f"and {len(items) - MOST_FAULTS} faults more"))
    return faults


def shown(value: object) -> str:
    """Return `value` as it is quoted in a message: short, and as JSON where it can be."""
    text = ""
    try:
        # In pieces: written out whole, YAML's aliases make gigabytes of a few hundred bytes.
        for piece in json.JSONEncoder(default=str, ensure_ascii=False).iterencode(value):
            text += piece
            if len(text) > _SHOWN:
                break
    except (ValueError, TypeError, RecursionError):
        text = f"<{type(value).__name__}>"
    return _encodable(text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…")


def _encodable(text: str) -> str:
    """Return `text` without lone surrogates, which no UTF-8 output takes."""
    return text.encode("utf-8", "backslashreplace").decode()


def _fault(loc: tuple[int | str, ...], message: str, kind: str, value: object, remedy: str) -> Fault:
    field = _encodable(".".join(str(part)[:_SHOWN] for part in loc))
    problem = message.removeprefix("Value error, ")
    if kind == RULE:
        return Fault(field, problem, remedy)
    if kind == "extra_forbidden":
        return Fault(field, "is no field of it", remedy or "remove it, or mind its spelling")
    if kind == "missing":
        return Fault(field, "is missing")
    if kind == "json_invalid":
        return Fault(field, problem)
    return Fault(field, f"{problem[:1].lower()}{problem[1:]}, got {shown(value)}")
