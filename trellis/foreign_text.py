"""Texts from elsewhere, made fit for the terminal: a device's words are not to be trusted with it."""

from __future__ import annotations

import json
from typing import Any


def harmless(text: str) -> str:
    """Return `text` with what would steer a terminal (ANSI, OSC, bidi) escaped; line breaks and tabs stay."""
    return _escaped(text, kept="\n\t")


def harmless_line(text: str) -> str:
    """Return `text` as `harmless` does, in one line: what stands in a row cannot feign another row."""
    return _escaped(text, kept="")


def json_text(value: Any, *, indent: int | None = None) -> str:
    """Return `value` as JSON, legible in any language; what would steer a terminal is escaped."""
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    if text.isprintable():
        return text
    # Outside its strings JSON has no such character but our own line breaks.
    return "".join(
        char if char.isprintable() or char == "\n" else json.dumps(char).strip('"') for char in text
    )


def _escaped(text: str, *, kept: str) -> str:
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() or char in kept else char.encode("unicode_escape").decode()
        for char in text
    )
