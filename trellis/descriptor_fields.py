"""The kinds of values in a task descriptor, each by itself. Strict: `"3"` and `true` are no numbers."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from typing import Annotated

from pydantic import AfterValidator, AwareDatetime, BeforeValidator, Field

DEFAULT_LIFETIME = timedelta(days=7)
MAX_CLASSES = 1_000_000
_LATEST = datetime.max.replace(tzinfo=UTC)

Positive = Annotated[int, Field(strict=True, ge=1, le=2**31 - 1)]
Fraction = Annotated[float, Field(strict=True, gt=0, le=1, allow_inf_nan=False)]
Finite = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Name = Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[a-z0-9][a-z0-9_.-]*$")]


def _number(value: object) -> object:
    # One fault for one parameter, where a union's every member would report its own.
    if not isinstance(value, int | float) or not -math.inf < value < math.inf:
        raise ValueError("input should be a finite number")
    # 1 and 1.0 are equal, so they must not differ in the signed text.
    whole = isinstance(value, float) and value.is_integer() and abs(value) < 2**53
    return int(value) if whole else value


def _dated(value: object) -> object:
    # Pydantic would take a number, also one in quotes, for seconds since 1970.
    if isinstance(value, datetime) or (isinstance(value, str) and "-" in value[1:]):
        return value
    raise ValueError("input should be a date and time with its zone, as 2026-05-01T12:00:00Z")


def _in_utc(value: datetime) -> datetime:
    try:
        return value.astimezone(UTC)
    except OverflowError:
        raise ValueError("input should be a time between the years 1 and 9999 in UTC") from None


Number = Annotated[float | int | bool, BeforeValidator(_number)]
Moment = Annotated[AwareDatetime, BeforeValidator(_dated), AfterValidator(_in_utc)]


def expiry(issued_at: object) -> object:
    """Return when a descriptor expires that does not say so."""
    # A malformed issued_at is reported once, under its own name, by pydantic.
    try:
        if isinstance(issued_at, str):
            issued_at = datetime.fromisoformat(issued_at)
        if isinstance(issued_at, datetime) and issued_at.tzinfo is not None:
            return issued_at + DEFAULT_LIFETIME
    except (ValueError, OverflowError):
        return _LATEST
    return _LATEST
