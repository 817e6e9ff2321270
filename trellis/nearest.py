"""The name that was probably meant: what a message about an unknown one suggests."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that is most like `name`, None if none is like it."""
    return next(iter(difflib.get_close_matches(name, list(known), n=1)), None)


def did_you_mean(name: str, known: Iterable[str], *, before: str = "", after: str = "") -> str:
    """Return `did you mean 'NEAREST'?` between these texts, or nothing if none is like it."""
    found = nearest(name, known)
    return "" if found is None else f"{before}did you mean {found!r}?{after}"
