"""`--since`: a moment, as people give it."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from trellis.errors import ConfigError

_SPAN = re.compile(r"(\d{1,9}(?:\.\d{1,3})?)\s*(s|m|min|h|d)", re.ASCII)
_UNITS = {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86_400.0}


def moment(text: str, now: datetime) -> int:
    """Return what `text` means in ms since 1970: so long before `now`, or a time, local unless it says more.

    Raises:
        ConfigError: It is neither.
    """
    try:
        if found := _SPAN.fullmatch(text.strip()):
            then = now - timedelta(seconds=float(found[1]) * _UNITS[found[2]])
        else:
            then = datetime.fromisoformat(text.strip()).astimezone(UTC)
        return max(0, int(then.timestamp() * 1000))
    except (ValueError, OverflowError, OSError):
        raise ConfigError(
            f"--since {text[:80]!r}",
            "must be a span of time, as 90s, 10m, 2h or 1d, or a time, as 2026-03-01T08:30 (add Z for UTC)",
        ) from None
